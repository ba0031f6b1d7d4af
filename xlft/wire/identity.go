package wire

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Fingerprint is the SHA-256 of a certificate in DER, as a peer is pinned in
// the config. It is printed as "sha256:" and 64 hex digits.
type Fingerprint [sha256.Size]byte

func (f Fingerprint) String() string { return "sha256:" + hex.EncodeToString(f[:]) }

// ParseFingerprint reads what String prints; colons between bytes, as openssl
// prints them, and upper case are taken too.
func ParseFingerprint(s string) (f Fingerprint, err error) {
	rest, ok := strings.CutPrefix(strings.ToLower(strings.TrimSpace(s)), "sha256:")
	if !ok {
		return f, fmt.Errorf("fingerprint %q does not start with \"sha256:\"", s)
	}
	b, err := hex.DecodeString(strings.ReplaceAll(rest, ":", ""))
	if err != nil || len(b) != len(f) {
		return f, fmt.Errorf("fingerprint %q is not 64 hex digits", s)
	}
	copy(f[:], b)
	return f, nil
}

// Identity is a host's own key and certificate.
type Identity struct {
	Certificate tls.Certificate
	Fingerprint Fingerprint
}

const (
	certFile = "host.crt"
	keyFile  = "host.key"
)

// ErrExists says that an identity is there already.
var ErrExists = errors.New("identity exists already")

// GenerateIdentity makes a new identity for the host called name and writes it
// to dir: host.crt and host.key (mode 0600), ECDSA P-256, valid for 100 years,
// since peers are pinned and not looked up. It replaces nothing unless force.
func GenerateIdentity(dir, name string, force bool) (Fingerprint, error) {
	fail := func(err error) (Fingerprint, error) {
		return Fingerprint{}, fmt.Errorf("make identity in %s: %w", dir, err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fail(err)
	}
	if _, err := os.Stat(filepath.Join(dir, keyFile)); err == nil && !force {
		return fail(ErrExists)
	}
	certPEM, keyPEM, fp, err := newCertificate(name)
	if err != nil {
		return fail(err)
	}
	// The key first: an interrupted call leaves a key without its certificate,
	// and LoadIdentity says so.
	for _, f := range []struct {
		name string
		data []byte
		mode os.FileMode
	}{{keyFile, keyPEM, 0o600}, {certFile, certPEM, 0o644}} {
		tmp := filepath.Join(dir, "."+f.name+".new")
		if err := os.WriteFile(tmp, f.data, f.mode); err != nil {
			return fail(err)
		}
		if err := os.Rename(tmp, filepath.Join(dir, f.name)); err != nil {
			return fail(err)
		}
	}
	return fp, nil
}

func newCertificate(name string) (certPEM, keyPEM []byte, fp Fingerprint, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fp, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, nil, fp, err
	}
	now := time.Now()
	tmpl := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: name},
		DNSNames:     []string{name},
		NotBefore:    now.Add(-24 * time.Hour),
		NotAfter:     now.AddDate(100, 0, 0),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		return nil, nil, fp, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, fp, err
	}
	certPEM = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	return certPEM, keyPEM, sha256.Sum256(der), nil
}

// LoadIdentity reads what GenerateIdentity wrote.
func LoadIdentity(dir string) (*Identity, error) {
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, certFile), filepath.Join(dir, keyFile))
	if err != nil {
		return nil, fmt.Errorf("load identity from %s: %w", dir, err)
	}
	return &Identity{cert, sha256.Sum256(cert.Certificate[0])}, nil
}

// UnknownPeerError is a peer whose certificate is not pinned here.
type UnknownPeerError struct{ Fingerprint Fingerprint }

func (e *UnknownPeerError) Error() string {
	return fmt.Sprintf("peer has certificate %v, which no peer in the config has", e.Fingerprint)
}

// TLSConfig gives the configuration of either side: TLS 1.3 only, both sides
// present certificates, and a peer's is accepted if allowed says so. Names and
// dates in certificates are not looked at: the fingerprint is the whole trust.
func (id *Identity) TLSConfig(allowed func(Fingerprint) bool) *tls.Config {
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{id.Certificate},
		ClientAuth:   tls.RequireAnyClientCert,
		NextProtos:   []string{"xlft"},
		// Verification is VerifyConnection's below, for both sides; this
		// switches off only the one by certificate authorities.
		InsecureSkipVerify:     true,
		SessionTicketsDisabled: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			if len(cs.PeerCertificates) == 0 {
				return errors.New("peer presented no certificate")
			}
			if fp := peerFingerprint(cs); !allowed(fp) {
				return &UnknownPeerError{fp}
			}
			return nil
		},
	}
}

// peerFingerprint returns the fingerprint of the certificate the peer presented.
func peerFingerprint(cs tls.ConnectionState) Fingerprint {
	return sha256.Sum256(cs.PeerCertificates[0].Raw)
}
