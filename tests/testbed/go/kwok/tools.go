//go:build tools

// Package tools pins what the testbed builds from this module: kwok.
package tools

import _ "sigs.k8s.io/kwok/cmd/kwok"
