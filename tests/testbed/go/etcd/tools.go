//go:build tools

// Package tools pins what the testbed builds from this module: etcd.
package tools

import (
	_ "go.etcd.io/etcd/server/v3"
)
