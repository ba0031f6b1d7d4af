//go:build linux

package lab

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// EtcdEndpoint is where the hosts reach the etcd of [Lab.StartEtcd]: at the test process's place on the LAN, which is
// a third one for them.
var EtcdEndpoint = "https://" + etcdAddress

var etcdAddress = fmt.Sprintf("%v:2379", ClientIP4)

// Etcd is a cluster of one member, a real etcd.
type Etcd struct {
	l   *Lab
	dir string
	cmd *exec.Cmd
}

// StartEtcd starts an etcd with nothing in it. It ends with the process, or by Close.
func (l *Lab) StartEtcd(ctx context.Context) (*Etcd, error) {
	dir, err := os.MkdirTemp(l.run.dir, "etcd-")
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	e := &Etcd{l: l, dir: dir}
	return e, e.Start(ctx)
}

// Start starts it again with what it had, after Stop.
func (e *Etcd) Start(ctx context.Context) error {
	log, err := os.OpenFile(filepath.Join(e.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	defer log.Close()
	const peer = "http://127.0.0.1:2380"
	e.cmd = exec.Command("etcd", "--name", "lab", "--data-dir", filepath.Join(e.dir, "data"), "--logger", "zap", "--auto-tls",
		"--listen-client-urls", EtcdEndpoint, "--advertise-client-urls", EtcdEndpoint,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "lab="+peer)
	e.cmd.Stderr = log
	if err := e.l.Exec(e.cmd); err != nil {
		return fmt.Errorf("lab: etcd: %w", err)
	}
	return Await(ctx, func() error {
		raw, err := e.l.Dial(ctx, "tcp", etcdAddress)
		if err != nil {
			said, _ := os.ReadFile(filepath.Join(e.dir, "log"))
			return fmt.Errorf("lab: etcd: %w\n%s", err, tail(string(said), 10))
		}
		c := tls.Client(raw, &tls.Config{InsecureSkipVerify: true})
		defer c.Close()
		return c.HandshakeContext(ctx)
	})
}

// CA is what its certificate is checked against, as PEM.
func (e *Etcd) CA() []byte {
	b, err := os.ReadFile(filepath.Join(e.dir, "data", "fixtures", "client", "cert.pem"))
	if err != nil {
		return []byte(err.Error()) // whoever reads it says that it is no certificate
	}
	return b
}

// Stop kills it; what it had acknowledged is kept.
func (e *Etcd) Stop() {
	e.cmd.Process.Kill()
	e.cmd.Wait()
}

// Keys returns the keys that it has.
func (e *Etcd) Keys(ctx context.Context) ([]string, error) {
	cmd := exec.CommandContext(ctx, "etcdctl", "--endpoints", EtcdEndpoint, "--insecure-skip-tls-verify", "--insecure-transport=false", "get", "/", "--prefix", "--keys-only")
	cmd.Env = append(os.Environ(), "ETCDCTL_API=3")
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := e.l.Exec(cmd); err != nil {
		return nil, err
	}
	if err := cmd.Wait(); err != nil {
		return nil, errors.Join(err, errors.New(errs.String()))
	}
	return strings.Fields(out.String()), nil
}
