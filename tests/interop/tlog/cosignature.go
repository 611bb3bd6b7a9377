package main

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
)

const (
	cosignatureType   = 4
	timeSize          = 8
	cosignatureHeader = "cosignature/v1\ntime %d\n"
)

// cosigner checks the signatures of a witness as c2sp.org/tlog-cosignature has them: type 4, with the time in seconds
// since 1970 before the Ed25519 signature, which is over a header with that time and the note's text.
//
// note.NewVerifier knows type 1 alone. All else of a note, its form, its key hashes and which signature is whose, is
// checked by note.Open.
type cosigner struct {
	name string
	hash uint32
	key  ed25519.PublicKey
	time uint64
}

// newCosigner parses a vkey, "<name>+<hash>+<base64(type ‖ key)>".
func newCosigner(vkey string) (*cosigner, error) {
	name, rest, _ := strings.Cut(vkey, "+")
	hash, encoded, _ := strings.Cut(rest, "+")
	raw, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil || len(raw) != 1+ed25519.PublicKeySize || raw[0] != cosignatureType {
		return nil, fmt.Errorf("%q is no key of a witness", vkey)
	}
	stated, err := strconv.ParseUint(hash, 16, 32)
	if err != nil || len(hash) != 8 {
		return nil, fmt.Errorf("%q has no key hash", vkey)
	}
	sum := sha256.Sum256(append([]byte(name+"\n"), raw...))
	if binary.BigEndian.Uint32(sum[:]) != uint32(stated) {
		return nil, fmt.Errorf("%q: the hash is not that of the key", vkey)
	}
	return &cosigner{name: name, hash: uint32(stated), key: raw[1:]}, nil
}

func (c *cosigner) Name() string    { return c.name }
func (c *cosigner) KeyHash() uint32 { return c.hash }

// Verify keeps the time of a signature that holds.
func (c *cosigner) Verify(text, signature []byte) bool {
	if len(signature) != timeSize+ed25519.SignatureSize {
		return false
	}
	time := binary.BigEndian.Uint64(signature)
	signed := append(fmt.Appendf(nil, cosignatureHeader, time), text...)
	if !ed25519.Verify(c.key, signed, signature[timeSize:]) {
		return false
	}
	c.time = time
	return true
}

// checkCosigned holds a note to a log's signature and a witness's, both over the same text, and to the witness's time.
func checkCosigned(cosigned string, log note.Verifier, witness string, time uint64, text string) error {
	verifier, err := newCosigner(witness)
	if err != nil {
		return err
	}
	opened, err := note.Open([]byte(cosigned), note.VerifierList(log, verifier))
	if err != nil {
		return err
	}
	if len(opened.Sigs) != 2 || len(opened.UnverifiedSigs) != 0 {
		return fmt.Errorf("%d signatures hold, and %d are of others", len(opened.Sigs), len(opened.UnverifiedSigs))
	}
	if opened.Text != text {
		return fmt.Errorf("it is of another checkpoint: %q", opened.Text)
	}
	if verifier.time != time {
		return fmt.Errorf("it was signed at %d, and not at %d", verifier.time, time)
	}
	return nil
}
