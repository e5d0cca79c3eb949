package remote

// Choose returns the manifest in index, an OCI index or a Docker manifest list, that suits platform best; "" is the host's. It
// may be an index again. ErrUnsupported when there is none.
func Choose(index []byte, platform string) (Descriptor, error) {
	want, err := parsePlatform(platform)
	if err != nil {
		return Descriptor{}, err
	}
	m, err := parseManifest(index)
	if err != nil {
		return Descriptor{}, err
	}
	if !m.isIndex() {
		return Descriptor{}, ErrUnsupported
	}
	d, err := m.choose(want)
	if err != nil {
		return Descriptor{}, err
	}
	return Descriptor{MediaType: d.MediaType, Digest: d.Digest.String(), Size: d.Size, Annotations: d.Annotations}, nil
}
