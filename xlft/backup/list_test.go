package backup

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"

	"go.uber.org/zap"

	"xlft/xlft/wire"
)

// A host with many domains whose arbiter fails at length still answers, or says why it does not.
func TestLongListIsAnswered(t *testing.T) {
	host, hostPrint := identity(t, "B")
	peer, peerPrint := identity(t, "A")
	r := &Receiver{Software: "test", Log: zap.NewNop(), PeerName: func(net.Conn) string { return "A" }}
	r.List = func(context.Context) (l wire.ListResult, err error) {
		for i := range maxReplicas {
			l.Domains = append(l.Domains, wire.ListDomain{Domain: fmt.Sprint("web", i), Role: "backup", State: "ready", NoArbiter: strings.Repeat("fence agent of alpha, level 1: no\n", 130)})
		}
		return l, nil
	}
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan struct{})
	go func() {
		defer close(served)
		r.Serve(ctx, wire.NewListener(inner, host.TLSConfig(func(f wire.Fingerprint) bool { return f == peerPrint })))
	}()
	defer func() { cancel(); <-served }()
	var l wire.ListResult
	err = wire.Ask(t.Context(), peer.Dialer([]string{inner.Addr().String()}, hostPrint), "test", wire.TypeList, nil, wire.TypeListResult, &l)
	var no *wire.Refusal
	if err != nil && !errors.As(err, &no) {
		t.Errorf("no answer and no reason: %v", err)
	}
}
