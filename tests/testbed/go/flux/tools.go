//go:build tools

// Package tools pins what the testbed builds from this module: Flux's kustomize-controller.
package tools

import _ "github.com/fluxcd/kustomize-controller"
