// Command foreign-verifier checks an issuance log with an independent implementation: the Go project's signed
// notes (golang.org/x/mod/sumdb/note) and transparency-log trees (golang.org/x/mod/sumdb/tlog).
//
//	foreign-verifier VERIFIER-KEY LOG-DIRECTORY PROOF LEAF
//
// PROOF is the output of `istio-hsm-ca log prove`, LEAF the proven line without its newline. The roots are
// computed from the lines, and every checkpoint in the directory must be signed and agree with them.
package main

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

type head struct {
	size int64
	root tlog.Hash
}

// open checks a note's signature and reads the checkpoint in it (c2sp.org/tlog-checkpoint).
func open(signed []byte, verifier note.Verifier) (head, error) {
	opened, err := note.Open(signed, note.VerifierList(verifier))
	if err != nil {
		return head{}, err
	}
	lines := strings.Split(opened.Text, "\n")
	if len(lines) != 4 || lines[3] != "" {
		return head{}, fmt.Errorf("a checkpoint has three lines: %q", opened.Text)
	}
	if lines[0] != verifier.Name() {
		return head{}, fmt.Errorf("origin %q, not %q", lines[0], verifier.Name())
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil {
		return head{}, err
	}
	root, err := tlog.ParseHash(lines[2])
	return head{size, root}, err
}

// memory holds a tree's hashes by their storage index.
type memory []tlog.Hash

func (m memory) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	hashes := make([]tlog.Hash, 0, len(indexes))
	for _, index := range indexes {
		if index < 0 || index >= int64(len(m)) {
			return nil, fmt.Errorf("the tree has no hash %d", index)
		}
		hashes = append(hashes, m[index])
	}
	return hashes, nil
}

// grow builds the tree over all lines of the log.
func grow(directory string) (tree memory, lines [][]byte, err error) {
	files, err := filepath.Glob(filepath.Join(directory, "*.jsonl"))
	if err != nil {
		return nil, nil, err
	}
	sort.Strings(files)
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			return nil, nil, err
		}
		for _, line := range bytes.SplitAfter(content, []byte("\n")) {
			if len(line) == 0 {
				continue
			}
			line = bytes.TrimSuffix(line, []byte("\n"))
			hashes, err := tlog.StoredHashes(int64(len(lines)), line, tree)
			if err != nil {
				return nil, nil, err
			}
			tree = append(tree, hashes...)
			lines = append(lines, line)
		}
	}
	return tree, lines, nil
}

// proven checks a c2sp.org/tlog-proof about a leaf.
func proven(proof, leaf []byte, verifier note.Verifier) error {
	top, checkpoint, found := bytes.Cut(proof, []byte("\n\n"))
	if !found {
		return fmt.Errorf("the proof has no checkpoint")
	}
	signed, err := open(checkpoint, verifier)
	if err != nil {
		return fmt.Errorf("the proof's checkpoint: %w", err)
	}
	lines := strings.Split(string(top), "\n")
	if len(lines) < 2 || lines[0] != "c2sp.org/tlog-proof@v1" {
		return fmt.Errorf("the proof begins with %q", lines[0])
	}
	index, err := strconv.ParseInt(strings.TrimPrefix(lines[1], "index "), 10, 64)
	if err != nil {
		return err
	}
	var path tlog.RecordProof
	for _, line := range lines[2:] {
		hash, err := base64.StdEncoding.DecodeString(line)
		if err != nil || len(hash) != tlog.HashSize {
			return fmt.Errorf("%q is not a hash", line)
		}
		path = append(path, tlog.Hash(hash))
	}
	return tlog.CheckRecord(path, signed.size, signed.root, index, tlog.RecordHash(leaf))
}

func run(arguments []string) error {
	if len(arguments) != 4 {
		return fmt.Errorf("usage: foreign-verifier VERIFIER-KEY LOG-DIRECTORY PROOF LEAF")
	}
	verifier, err := note.NewVerifier(arguments[0])
	if err != nil {
		return err
	}
	tree, lines, err := grow(arguments[1])
	if err != nil {
		return err
	}
	checkpoints, err := filepath.Glob(filepath.Join(arguments[1], "*checkpoint"))
	if err != nil {
		return err
	}
	var heads []head
	for _, file := range checkpoints {
		signed, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		one, err := open(signed, verifier)
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		if one.size > int64(len(lines)) {
			return fmt.Errorf("%s: it was signed for %d lines and there are %d", file, one.size, len(lines))
		}
		root, err := tlog.TreeHash(one.size, tree)
		if err != nil {
			return err
		}
		if root != one.root {
			return fmt.Errorf("%s: root %v, and the lines give %v", file, one.root, root)
		}
		heads = append(heads, one)
	}
	if len(heads) == 0 {
		return fmt.Errorf("%s: no checkpoint", arguments[1])
	}
	proof, err := os.ReadFile(arguments[2])
	if err != nil {
		return err
	}
	leaf, err := os.ReadFile(arguments[3])
	if err != nil {
		return err
	}
	if err := proven(proof, leaf, verifier); err != nil {
		return fmt.Errorf("the inclusion proof: %w", err)
	}
	fmt.Printf("%d lines, %d checkpoints and an inclusion proof verify\n", len(lines), len(heads))
	return nil
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
