//go:build linux

package lab

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"time"
)

// A monitor speaks QMP with one QEMU.
type monitor struct {
	conn net.Conn
	dec  *json.Decoder
}

// dialMonitor waits for QEMU to open its socket. It gives up when gone is closed.
func dialMonitor(ctx context.Context, path string, gone <-chan struct{}) (*monitor, error) {
	var conn net.Conn
	err := poll(ctx, 5*time.Millisecond, func() error {
		select {
		case <-gone:
			return stop(errors.New("it ended"))
		default:
		}
		var err error
		conn, err = net.Dial("unix", path)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("monitor of QEMU: %w", err)
	}
	m := &monitor{conn, json.NewDecoder(bufio.NewReader(conn))}
	var greeting struct{ QMP json.RawMessage }
	if err := m.dec.Decode(&greeting); err != nil {
		conn.Close()
		return nil, fmt.Errorf("monitor of QEMU: greeting: %w", err)
	}
	if _, err := m.do("qmp_capabilities", nil); err != nil {
		conn.Close()
		return nil, err
	}
	return m, nil
}

func (m *monitor) do(command string, args any) (json.RawMessage, error) {
	req := map[string]any{"execute": command}
	if args != nil {
		req["arguments"] = args
	}
	body, err := json.Marshal(req)
	if err != nil {
		return nil, fmt.Errorf("monitor: %s: %w", command, err)
	}
	if _, err := m.conn.Write(body); err != nil {
		return nil, fmt.Errorf("monitor: %s: %w", command, err)
	}
	for {
		var reply struct {
			Return json.RawMessage
			Error  *struct{ Class, Desc string }
		}
		if err := m.dec.Decode(&reply); err != nil {
			return nil, fmt.Errorf("monitor: %s: %w", command, err)
		}
		switch {
		case reply.Error != nil:
			return nil, fmt.Errorf("monitor: %s: %s", command, reply.Error.Desc)
		case reply.Return != nil:
			return reply.Return, nil
		}
		// An event.
	}
}

// ignoreShared leaves memory that is a shared file out of a migration: the file has it already.
func (m *monitor) ignoreShared() error {
	_, err := m.do("migrate-set-capabilities", map[string]any{
		"capabilities": []any{map[string]any{"capability": "x-ignore-shared", "state": true}},
	})
	return err
}

// migrated waits for the migration under way to end.
func (m *monitor) migrated(ctx context.Context) error {
	return poll(ctx, 5*time.Millisecond, func() error {
		body, err := m.do("query-migrate", nil)
		if err != nil {
			return stop(err)
		}
		var s struct {
			Status string
			Desc   string `json:"error-desc"`
		}
		if err := json.Unmarshal(body, &s); err != nil {
			return stop(fmt.Errorf("monitor: query-migrate: %w", err))
		}
		switch s.Status {
		case "completed":
			return nil
		case "failed", "cancelled":
			return stop(fmt.Errorf("migration %s: %s", s.Status, s.Desc))
		}
		return fmt.Errorf("migration %s", s.Status)
	})
}

func (m *monitor) close() { m.conn.Close() }
