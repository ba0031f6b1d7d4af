//go:build linux

package lab

import (
	"context"
	"fmt"
	"net/http"
	"sync"
)

// PowerAddress is where a host reaches the power switch of ServePower, on the network that no test cuts.
const PowerAddress = "10.21.0.1:16992"

// A Power is the power switch of both hosts, like a baseboard management controller's: hosts use it to fence each
// other.
type Power struct {
	mu  sync.Mutex
	off []string
}

// ServePower serves POST /off/NAME, which kills a host and answers when it is dead, and POST /status/NAME, which
// answers 200 if the host is up and 410 if not. It ends with ctx.
func (l *Lab) ServePower(ctx context.Context) (*Power, error) {
	ln, err := l.Listen(ctx, "tcp", PowerAddress)
	if err != nil {
		return nil, fmt.Errorf("lab: power switch: %w", err)
	}
	p := &Power{}
	mux := http.NewServeMux()
	host := func(w http.ResponseWriter, r *http.Request) *Host {
		for _, h := range l.Hosts() {
			if h.name == r.PathValue("name") {
				return h
			}
		}
		http.Error(w, "no such host", http.StatusBadRequest)
		return nil
	}
	mux.HandleFunc("POST /off/{name}", func(w http.ResponseWriter, r *http.Request) {
		if h := host(w, r); h != nil {
			h.Kill()
			p.mu.Lock()
			p.off = append(p.off, h.name)
			p.mu.Unlock()
		}
	})
	mux.HandleFunc("POST /status/{name}", func(w http.ResponseWriter, r *http.Request) {
		if h := host(w, r); h != nil && h.PID() == 0 {
			w.WriteHeader(http.StatusGone)
		}
	})
	srv := &http.Server{Handler: mux}
	go srv.Serve(ln)
	context.AfterFunc(ctx, func() { srv.Close() })
	return p, nil
}

// Fenced returns the names of the hosts that were switched off, in order.
func (p *Power) Fenced() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.off...)
}

// FenceAgent is a program for a host that operates the switch, in the calling convention of ClusterLabs' fence agents.
const FenceAgent = `#!/bin/bash
while IFS== read -r key value; do
	case $key in action) action=$value ;; plug) plug=$value ;; esac
done
if [ "$action" = metadata ]; then
	echo '<resource-agent name="fence_lab"><actions><action name="on" automatic="0"/><action name="off"/><action name="status"/><action name="metadata"/></actions></resource-agent>'
	exit 0
fi
switch=` + PowerAddress + `
exec 3<>/dev/tcp/${switch/://} || exit 1
printf 'POST /%s/%s HTTP/1.0\r\n\r\n' "$action" "$plug" >&3
read -r _ code _ <&3
case $code in
200) exit 0 ;;
410) exit 2 ;;
esac
echo "the power switch answers $code" >&2
exit 1
`
