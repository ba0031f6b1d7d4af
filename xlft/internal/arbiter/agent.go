package arbiter

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"os/exec"
	"sort"
	"strings"
	"time"

	"xlft/xlft/config"
)

// Exit statuses of an agent's action=status (ClusterLabs, FenceAgentAPI.md, "Agent
// Operations and Return Values").
const (
	statusOn  = 0
	statusOff = 2
)

// maxOutput is how much of an agent's output an error quotes, in bytes.
const maxOutput = 2 << 10

// RunAgent runs a fence agent as ClusterLabs' Fence Agent API says: options are
// lines on standard input, and exit status 0 is success. Code is -1 if there is none.
func RunAgent(ctx context.Context, f config.FenceAgent, action string) (out []byte, code int, err error) {
	ctx, cancel := context.WithTimeout(ctx, f.Timeout)
	defer cancel()
	var in bytes.Buffer
	var stdout, stderr output
	keys := make([]string, 0, len(f.Options))
	for k := range f.Options {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	for _, k := range keys {
		fmt.Fprintf(&in, "%s=%s\n", k, f.Options[k])
	}
	fmt.Fprintf(&in, "action=%s\n", action)
	cmd := exec.CommandContext(ctx, f.Agent)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = &in, &stdout, &stderr
	cmd.WaitDelay = time.Second // a child of the agent may keep its output open
	err = cmd.Run()
	if err == nil {
		return stdout.b, 0, nil
	}
	if ctx.Err() != nil {
		err = fmt.Errorf("no answer within %v", f.Timeout)
	}
	said := append(stdout.b, stderr.b...)
	text := strings.TrimSpace(string(said[:min(len(said), maxOutput)]))
	if text != "" {
		text = ": " + text
	}
	code = -1
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code = exit.ExitCode()
	}
	return nil, code, fmt.Errorf("%s, action %s: %w%s", f.Agent, action, err, text)
}

// output keeps what a program prints, up to more than any agent's metadata have.
type output struct{ b []byte }

func (o *output) Write(p []byte) (int, error) {
	const most = 1 << 20
	o.b = append(o.b, p[:min(len(p), most-len(o.b))]...)
	return len(p), nil
}

// metadata is what an agent says of itself with action=metadata (fence-agents,
// lib/metadata.rng).
type metadata struct {
	XMLName xml.Name `xml:"resource-agent"`
	Actions []struct {
		Name      string `xml:"name,attr"`
		Automatic string `xml:"automatic,attr"`
		OnTarget  string `xml:"on_target,attr"`
	} `xml:"actions>action"`
}

// unfit says why an agent can't be an arbiter, by its metadata; nil if it can.
func unfit(agent string, out []byte) error {
	var m metadata
	if err := xml.Unmarshal(out, &m); err != nil {
		return fmt.Errorf("%s, action metadata: what it says is no metadata of a fence agent: %w", agent, err)
	}
	has := map[string]bool{}
	var names []string
	fabric := false
	for _, a := range m.Actions {
		has[a.Name] = true
		names = append(names, a.Name)
		// A host that was cut off from a fabric has to be let in again, by itself when it
		// has booted; one that has no power does not.
		if a.Name == "on" && (a.Automatic == "1" || a.OnTarget == "1") {
			fabric = true
		}
	}
	all := strings.Join(names, ", ")
	switch {
	case !has["off"]:
		return fmt.Errorf("%s can't switch a host off and leave it off (its actions are %s): a host that is switched on again at once was never seen to be off", agent, all)
	case !has["status"]:
		return fmt.Errorf("%s can't say whether a host is off (its actions are %s): nothing would confirm that it is", agent, all)
	case fabric:
		return fmt.Errorf("%s cuts a host off from storage or a network, as its action \"on\" says, and does not switch it off: its domains would run on. Use an agent that takes the power", agent)
	}
	return nil
}
