// Package priority carries how urgent a fetch is from whoever wants bytes to whoever moves them.
package priority

import "context"

// Class orders fetches: all of a lower class go before any of a higher one.
type Class uint8

const (
	// OnDemand is a read somebody waits for now. It is what a context without a class means.
	OnDemand Class = iota
	// Predicted is a read that somebody will very likely wait for soon.
	Predicted
	// Background completes an image while the link would otherwise be idle.
	Background
)

func (c Class) String() string {
	switch c {
	case OnDemand:
		return "on-demand"
	case Predicted:
		return "predicted"
	default:
		return "background"
	}
}

type key struct{}

// With returns a context whose fetches have class c.
func With(ctx context.Context, c Class) context.Context {
	return context.WithValue(ctx, key{}, c)
}

// From returns the class of ctx's fetches, OnDemand where none was set.
func From(ctx context.Context) Class {
	c, _ := ctx.Value(key{}).(Class)
	return c
}
