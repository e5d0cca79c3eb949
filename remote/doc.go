// Package remote turns an image reference into a pinned manifest, and a blob of that manifest into bytes at an offset.
//
// A Client resolves references (Resolve) and reads blobs by HTTP Range (Blob). Every byte that a digest names is checked
// here when this package sees all of it (manifests, configs, whole streams of registries without Range support); ranges
// of a blob are checked by whoever knows the digest of the range.
//
// # How a read travels
//
// Blob.ReadAt and Blob.Open both walk a cursor over flights. A flight is one range on its way; readers that want
// bytes of a flight already under way share it. A flight waits for its host's scheduler, which admits on-demand
// ranges before predicted ones and those before background ones, then asks the registry (or the object storage that the registry
// redirected to) and tries again until it has every byte or the stall deadline has passed.
//
// # Locks
//
// In order: Blob.mu; then any one of Client.mu, upstream.mu, spool.mu, scheduler.mu; then link.mu. breaker.mu is a leaf,
// and so is an authorizer's lock but for Client.mu. No mutex is held while waiting for the network; an authorizer's lock is
// a channel, so that waiting for a token can be cancelled.
package remote
