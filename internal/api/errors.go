package api

import "errors"

// Error is a failure as it travels from the daemon: its message is what the user sees.
type Error struct {
	Code    string `json:"code,omitempty"`
	Message string `json:"message"`
}

func (e *Error) Error() string { return e.Message }

// Codes of Errors, for programs.
const (
	CodeNotCached    = "not_cached"
	CodeNotFound     = "not_found"
	CodeUnauthorized = "unauthorized"
	CodeUnreachable  = "unreachable"
	CodeCorrupt      = "corrupt"
	CodeInvalid      = "invalid" // the request itself is wrong
	CodeInUse        = "in_use"
)

// Is makes errors.Is(err, &Error{Code: c}) true for every Error with code c.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Message == "" && t.Code == e.Code
}

// AsError returns err as an Error, with an empty Code if it was none.
func AsError(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return &Error{Message: err.Error()}
}
