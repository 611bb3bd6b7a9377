// Checks what custody writes with Go's own implementation of notes and transparency logs, which no one here wrote.
//
// It reads one JSON object from stdin: a log's statements, a signed checkpoint and the public key that it is to be checked
// by, proofs, and the same checkpoint as a witness cosigned it, with the witness's key and time. It makes the tree's
// entries, which are the signed messages, from the statements, recomputes everything from them, and ends with 1 and a
// reason if anything differs.
package main

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

type input struct {
	Statements [][]byte `json:"statements"`
	Note       string   `json:"note"`
	Vkey       string   `json:"vkey"`
	Origin     string   `json:"origin"`
	Index      int64    `json:"index"`
	Inclusion  []string `json:"inclusion"`
	Older      int64    `json:"older"`
	Consistent []string `json:"consistency"`
	Cosigned   string   `json:"cosigned"`
	Witness    string   `json:"witness"`
	Time       uint64   `json:"time"`
}

func main() {
	if err := check(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("ok")
}

func check() error {
	var in input
	if err := json.NewDecoder(os.Stdin).Decode(&in); err != nil {
		return err
	}
	verifier, err := note.NewVerifier(in.Vkey)
	if err != nil {
		return fmt.Errorf("vkey: %w", err)
	}
	opened, err := note.Open([]byte(in.Note), note.VerifierList(verifier))
	if err != nil {
		return fmt.Errorf("note: %w", err)
	}
	lines := strings.Split(opened.Text, "\n")
	if len(lines) != 4 || lines[0] != in.Origin {
		return fmt.Errorf("checkpoint: %q", opened.Text)
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil || size != int64(len(in.Statements)) {
		return fmt.Errorf("checkpoint: size %q of %d statements", lines[1], len(in.Statements))
	}
	var root tlog.Hash
	raw, err := base64.StdEncoding.DecodeString(lines[2])
	if err != nil || len(raw) != len(root) {
		return fmt.Errorf("checkpoint: root %q", lines[2])
	}
	copy(root[:], raw)

	var stored []tlog.Hash
	reader := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		found := make([]tlog.Hash, len(indexes))
		for i, index := range indexes {
			found[i] = stored[index]
		}
		return found, nil
	})
	for i, statement := range in.Statements {
		hashes, err := tlog.StoredHashes(int64(i), entry(statement), reader)
		if err != nil {
			return err
		}
		stored = append(stored, hashes...)
	}
	computed, err := tlog.TreeHash(size, reader)
	if err != nil {
		return err
	}
	if computed != root {
		return fmt.Errorf("root: %v, and the checkpoint has %v", computed, root)
	}
	inclusion, err := hashes(in.Inclusion)
	if err != nil {
		return err
	}
	leaf := tlog.RecordHash(entry(in.Statements[in.Index]))
	if err := tlog.CheckRecord(inclusion, size, root, in.Index, leaf); err != nil {
		return fmt.Errorf("inclusion: %w", err)
	}
	older, err := tlog.TreeHash(in.Older, reader)
	if err != nil {
		return err
	}
	consistency, err := hashes(in.Consistent)
	if err != nil {
		return err
	}
	if err := tlog.CheckTree(consistency, size, root, in.Older, older); err != nil {
		return fmt.Errorf("consistency: %w", err)
	}
	if err := checkCosigned(in.Cosigned, verifier, in.Witness, in.Time, opened.Text); err != nil {
		return fmt.Errorf("cosigned: %w", err)
	}
	return nil
}

// entry is what is signed of a statement, and the tree's entry: its format and the SHA-256 of its line.
func entry(statement []byte) []byte {
	return fmt.Appendf(nil, "custody/manifest/1\n%x\n", sha256.Sum256(statement))
}

func hashes(texts []string) ([]tlog.Hash, error) {
	found := make([]tlog.Hash, len(texts))
	for i, text := range texts {
		raw, err := hex.DecodeString(text)
		if err != nil || len(raw) != len(found[i]) {
			return nil, fmt.Errorf("hash %q", text)
		}
		copy(found[i][:], raw)
	}
	return found, nil
}
