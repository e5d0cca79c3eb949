package main

import (
	"strings"
	"testing"
)

func TestTable(t *testing.T) {
	var out strings.Builder
	err := writeTable(&out, []Result{
		{System: "b", Link: "l", Form: "f", Image: "i", Seconds: 3, Bytes: 5e6, Size: 10e6},
		{System: "a", Link: "l", Form: "f", Image: "i", Seconds: 1, Bytes: 1e6, Size: 10e6, Complete: 7},
		{System: "a", Link: "l", Form: "f", Image: "i", Seconds: 2, Bytes: 3e6, Size: 10e6, Complete: 9},
	})
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 4 || !strings.Contains(lines[2], "| a | **1.50** (1.00 to 2.00) | 2.0 of 10.0 | 0 | 8.0 | 2 |") || !strings.Contains(lines[3], "| b | **3.00**") {
		t.Errorf("got\n%s", out.String())
	}
}

func TestChooseLinks(t *testing.T) {
	if l, err := chooseLinks("1g,100m"); err != nil || len(l) != 2 || l[0].mbit != 1000 {
		t.Errorf("%v, %v", l, err)
	}
	if _, err := chooseLinks("dsl"); err == nil {
		t.Error("an unknown link was taken")
	}
}
