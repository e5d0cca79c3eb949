package main

import (
	"fmt"
	"path/filepath"
	"slices"
)

// set is everything that a directory of results has.
type set struct {
	dir      string
	machines []Machine
	records  []Record
	failures []Failure
	facts    map[string]Facts
	samples  []Sample
}

// readResults reads a directory of results.
func readResults(dir string) (*set, error) {
	s := &set{dir: dir, facts: map[string]Facts{}}
	var err error
	if s.machines, err = readLines[Machine](filepath.Join(dir, machineFile)); err != nil {
		return nil, err
	}
	if s.records, err = readLines[Record](filepath.Join(dir, coldFile)); err != nil {
		return nil, err
	}
	if s.failures, err = readLines[Failure](filepath.Join(dir, errorsFile)); err != nil {
		return nil, err
	}
	if s.samples, err = readLines[Sample](filepath.Join(dir, samplesFile)); err != nil {
		return nil, err
	}
	facts, err := readLines[Facts](filepath.Join(dir, imagesFile))
	if err != nil {
		return nil, err
	}
	for _, f := range facts {
		s.facts[f.Image] = f
	}
	if len(s.records)+len(s.samples)+len(s.failures) == 0 {
		return nil, fmt.Errorf("there are no results in %s", dir)
	}
	return s, nil
}

// limit is the physical limit of an image on a link, seconds; 0 when nobody has looked.
func (s *set) limit(image, key string) float64 {
	f, ok := s.facts[image]
	i := slices.IndexFunc(links(), func(l link) bool { return l.key == key })
	if !ok || i < 0 {
		return 0
	}
	return f.limit(links()[i])
}
