//go:build tools

// Package tools pins what the testbed builds from this module: kubeconform.
package tools

import _ "github.com/yannh/kubeconform/cmd/kubeconform"
