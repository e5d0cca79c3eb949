package daemon

import (
	"errors"
	"net/http"
	"syscall"

	"github.com/microsandbox/msb-fs/cow"
	"github.com/microsandbox/msb-fs/internal/api"
	"github.com/microsandbox/msb-fs/layer"
	"github.com/microsandbox/msb-fs/remote"
)

// toError gives err the code that a client can tell it by.
func toError(err error) *api.Error {
	e := *api.AsError(err)
	if e.Code != "" {
		e.Message = err.Error() // with what was wrapped around it
		return &e
	}
	for _, known := range []struct {
		is   error
		code string
	}{
		{remote.ErrNotFound, api.CodeNotFound},
		{remote.ErrUnauthorized, api.CodeUnauthorized},
		{remote.ErrUnreachable, api.CodeUnreachable},
		{remote.ErrInvalidReference, api.CodeInvalid},
		{remote.ErrDigest, api.CodeCorrupt},
		{layer.ErrCorrupt, api.CodeCorrupt},
		{syscall.ENOENT, api.CodeNotFound},
		{cow.ErrInUse, api.CodeInUse},
	} {
		if errors.Is(err, known.is) {
			return &api.Error{Code: known.code, Message: err.Error()}
		}
	}
	return &api.Error{Message: err.Error()}
}

// status is the HTTP status of an answer with that error.
func status(e *api.Error) int {
	switch e.Code {
	case api.CodeNotCached, api.CodeNotFound:
		return http.StatusNotFound
	case api.CodeInvalid:
		return http.StatusBadRequest
	case api.CodeInUse:
		return http.StatusConflict
	case api.CodeUnauthorized, api.CodeUnreachable, api.CodeCorrupt:
		return http.StatusBadGateway
	default:
		return http.StatusInternalServerError
	}
}
