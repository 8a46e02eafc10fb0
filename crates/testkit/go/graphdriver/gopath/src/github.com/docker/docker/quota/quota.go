// Package quota stands in for docker's, which Debian leaves out and the suite imports for one value.
package quota

import "errors"

// ErrQuotaNotSupported is what docker's own drivers answer where they have no quota.
var ErrQuotaNotSupported = errors.New("no quota")
