package main

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestSummary(t *testing.T) {
	var cold timing
	err := json.Unmarshal([]byte(`{"image_bytes":100000000,"events":[{"name":"first output","ms":1500,"bytes_fetched":20000000}]}`), &cold)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	printSummary(&out, []result{{title: "x", cold: cold, warm: cold}})
	for _, want := range []string{"1.50 s", "20.0 of 100.0 MB (20 %)"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	if _, _, ok := cold.at("nothing"); ok {
		t.Error("an event that did not happen was found")
	}
}

func TestQuoted(t *testing.T) {
	if got := quoted([]string{"run", "-c", "echo a b"}); got != `run -c "echo a b"` {
		t.Error(got)
	}
}
