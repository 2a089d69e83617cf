//go:build tools

// Package tools pins what the testbed builds from this module: helm.
package tools

import _ "helm.sh/helm/v4/cmd/helm"
