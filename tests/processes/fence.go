package processes

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
)

// agentEnv makes the test's binary a fence agent, and has the path of the power
// switch.
const agentEnv = "XLFT_PROCESSES_FENCE"

// Agent is the fence agent: if this process is one, it does its work and ends.
func Agent() {
	path := os.Getenv(agentEnv)
	if path == "" {
		return
	}
	options, err := io.ReadAll(os.Stdin)
	if strings.Contains("\n"+string(options), "\naction=metadata\n") {
		fmt.Println(`<resource-agent name="fence_test"><actions><action name="on" automatic="0"/><action name="off"/><action name="status"/><action name="metadata"/></actions></resource-agent>`)
		os.Exit(0)
	}
	c, derr := net.Dial("unix", path)
	if err != nil || derr != nil {
		fmt.Println(err, derr)
		os.Exit(1)
	}
	fmt.Fprintf(c, "%s\n\n", strings.TrimSpace(string(options)))
	code := 1
	fmt.Fscan(c, &code)
	os.Exit(code)
}

// serveAgent answers the agents of a host.
func (h *host) serveAgent() (err error) {
	if h.agent, err = net.Listen("unix", filepath.Join(h.dir, "fence")); err != nil {
		return err
	}
	go func() {
		for {
			c, err := h.agent.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				in := bufio.NewScanner(c)
				o := map[string]string{}
				for in.Scan() && in.Text() != "" {
					k, v, _ := strings.Cut(in.Text(), "=")
					o[k] = v
				}
				fmt.Fprintln(c, h.fence(o["action"], o["plug"]))
			}()
		}
	}()
	return nil
}

// fence is a call of the agent on this host; it returns the exit status.
func (h *host) fence(action, plug string) int {
	w := h.w
	w.power.Lock()
	defer w.power.Unlock()
	target := w.host(plug)
	if target == nil {
		return 1 // the agent was killed before it had said what it wants
	}
	w.mu.Lock()
	alive, on, deaf := h.on, target.on, h.deafBMC
	w.mu.Unlock()
	switch {
	case !alive || deaf:
		return 1 // the agent ended with its host
	case action == "status" && on:
		return 0
	case action == "status":
		return 2
	case action != "off":
		return 1
	}
	if on {
		w.outmu.Lock()
		w.Counts.Fences++
		w.judgeFence(h, target)
		w.outmu.Unlock()
		target.cutPower("fenced by " + h.name)
	}
	return 0
}

func (w *World) host(name string) *host {
	for _, h := range w.hosts {
		if h.name == name {
			return h
		}
	}
	return nil
}
