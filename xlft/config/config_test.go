package config_test

import (
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"xlft/xlft"
	"xlft/xlft/config"
)

const minimal = `
[host]
name = "alpha"

[arbiter]
type = "none"
accept_split_brain = true

[peer.beta]
address = "192.0.2.2:7789"
fingerprint = "sha256:` + zeros + `"
`

const zeros = "0000000000000000000000000000000000000000000000000000000000000000"

func TestMinimal(t *testing.T) {
	c, err := config.Parse("minimal", strings.NewReader(minimal))
	if err != nil {
		t.Fatal(err)
	}
	d := c.For("web1")
	if d.Name != "web1" || d.Backup() != "beta" || d.Mode != xlft.ModeEvent || d.EpochMax != time.Second || !d.Compress {
		t.Errorf("web1 is protected as %+v", d)
	}
}

var fencing = strings.Replace(minimal, `"none"`, `"fence"`, 1) + "[peer.beta.fence]\nagent = \"/usr/sbin/fence_ipmilan\"\noptions = { ip = \"192.0.2.9\", lanplus = true, power_wait = 4 }\n"

func TestFence(t *testing.T) {
	c, err := config.Parse("fence", strings.NewReader(fencing+"[domain.web1.disk.xvda]\npath = \"/d\"\nstorage = \"shared\"\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := &config.Fence{Levels: [][]config.FenceAgent{{{Agent: "/usr/sbin/fence_ipmilan", Timeout: time.Minute, Options: map[string]string{"ip": "192.0.2.9", "lanplus": "true", "power_wait": "4"}}}}}
	if got := c.Peers["beta"].Fence; !reflect.DeepEqual(got, want) {
		t.Errorf("beta is fenced by %+v, want %+v", got, want)
	}
	if d := c.For("web1").Disks["xvda"]; !d.Shared || !d.Direct {
		t.Errorf("the disk is %+v", d)
	}
}

func TestFenceLevels(t *testing.T) {
	c, err := config.Parse("levels", strings.NewReader(strings.Replace(minimal, `"none"`, `"fence"`, 1)+`
[peer.beta.fence]
delay = "2s"
levels = [
	[{ agent = "/bmc", options = { ip = "192.0.2.9" } }],
	[{ agent = "/pdu", options = { plug = 1 }, timeout = "9s" }, { agent = "/pdu", options = { plug = 2 } }],
]
`))
	if err != nil {
		t.Fatal(err)
	}
	want := &config.Fence{Delay: 2 * time.Second, Levels: [][]config.FenceAgent{
		{{Agent: "/bmc", Timeout: time.Minute, Options: map[string]string{"ip": "192.0.2.9"}}},
		{{Agent: "/pdu", Timeout: 9 * time.Second, Options: map[string]string{"plug": "1"}}, {Agent: "/pdu", Timeout: time.Minute, Options: map[string]string{"plug": "2"}}},
	}}
	if got := c.Peers["beta"].Fence; !reflect.DeepEqual(got, want) {
		t.Errorf("beta is fenced by %+v, want %+v", got, want)
	}
}

// The reference file has every key, and its values are the defaults where it
// says so.
func TestReference(t *testing.T) {
	const path = "../../conf/xlft.toml"
	c, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	m, err := config.Parse("minimal", strings.NewReader(minimal))
	if err != nil {
		t.Fatal(err)
	}
	got, want := c.Default, m.Default
	want.Backups = []string{"beta"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("[default] of the reference is %+v, the defaults are %+v", got, want)
	}
	arbiter := c.Arbiter
	arbiter.Etcd, arbiter.File = nil, nil
	if f := c.Arbiter.File; f.Directory != "/srv/xlft" || f.Timeout != 10*time.Second {
		t.Errorf("[arbiter.file] of the reference is %+v", f)
	}
	if e := c.Arbiter.Etcd; e.Prefix != "/xlft" || e.Timeout != 5*time.Second || len(e.Endpoints) != 3 {
		t.Errorf("[arbiter.etcd] of the reference is %+v", e)
	}
	if c.HealthCommand != m.HealthCommand || c.HealthInterval != m.HealthInterval || c.Listen != m.Listen || c.Identity != m.Identity || c.StateDir != m.StateDir || c.RunDir != m.RunDir || c.CheckpointMemory != m.CheckpointMemory || c.PageCache != m.PageCache || c.DiskJournal != m.DiskJournal || c.DiskJournalFile != m.DiskJournalFile || c.DurableAck != m.DurableAck || !reflect.DeepEqual(arbiter, m.Arbiter) {
		t.Errorf("reference %+v, defaults %+v", c, m)
	}
	if d := c.For("web1"); d.RunShare != 0.8 || d.EpochMax != time.Second || d.FailureTimeout != time.Second {
		t.Errorf("web1 is protected as %+v", d)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"name", "identity", "state_dir", "run_dir", "health_command", "health_interval", "listen", "checkpoint_memory", "page_cache", "type", "accept_split_brain", "fence_after", "check_interval", "ping", "endpoints", "prefix", "ca", "cert", "key", "directory",
		"address", "addresses", "fingerprint", "backups", "protect", "move_after", "mode", "epoch_min", "epoch_max", "event_window_max", "run_share", "dirty_max", "failure_timeout", "ack_timeout", "suspend_timeout", "retry_delay", "compression", "net_buffer", "sync_rate", "disk_journal", "disk_journal_file", "durable_ack", "path", "cache", "storage", "sector_size", "agent", "timeout", "delay", "levels"} {
		if !strings.Contains(strings.ReplaceAll(string(text), "\n# ", "\n"), "\n"+key+" = ") {
			t.Errorf("the reference lacks %s", key)
		}
	}
}

// etcd is a configuration with a table for it.
func etcd(endpoints string, more ...string) string {
	return minimal + "[arbiter.etcd]\nendpoints = " + endpoints + "\n" + strings.Join(more, "\n") + "\n"
}

func TestErrors(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"unknown key", minimal + "[default]\nepoch_mx = \"1s\"\n", "x.toml:13: default.epoch_mx: unknown key"},
		{"unknown table", minimal + "[arbitre]\ntype = \"none\"\n", "x.toml:12: arbitre: unknown key"},
		{"unknown key of a domain", minimal + "[domain.\"web 1\"]\nfoo = 1\n", "x.toml:13: domain.\"web 1\".foo: unknown key"},
		{"syntax", "[host\n", "x.toml:2: expected '.' or ']' to end table name, but got '\\n' instead"},
		{"too short", minimal + "[domain.web1]\nepoch_max = \"2ms\"\n", "x.toml:13: domain.web1.epoch_max: 2ms is not between 5ms and 1m0s"},
		{"unknown mode", minimal + "[default]\nmode = \"remus\"\n", `x.toml:13: default.mode: "remus" is none of "event", "strict" and "interval"`},
		{"shortest above longest", minimal + "[default]\nepoch_max = \"50ms\"\nepoch_min = \"60ms\"\n", "x.toml:14: default.epoch_min: 60ms is more than epoch_max, 50ms"},
		{"shortest above the window", minimal + "[default]\nevent_window_max = \"50ms\"\nepoch_min = \"60ms\"\n", "default.epoch_min: 60ms is more than event_window_max, 50ms"},
		{"no time for checkpoints", minimal + "[default]\nrun_share = 1.0\n", "x.toml:13: default.run_share: 1 is not between 0 and 0.95"},
		{"no share", minimal + "[domain.web1]\nrun_share = nan\n", "domain.web1.run_share: NaN is not between"},
		{"no duration", minimal + "[default]\nepoch_max = \"fast\"\n", "\"fast\" is no duration such as \"200ms\" or \"1s\""},
		{"no size", minimal + "[receive]\ncheckpoint_memory = \"1 TB\"\n", "\"1 TB\" is no size such as \"64MiB\""},
		{"too large", minimal + "[receive]\npage_cache = \"1024GiB\"\n", "receive.page_cache: 1099511627776 bytes is over the 64GiB maximum"},
		{"too small", minimal + "[receive]\ncheckpoint_memory = \"1MiB\"\n", "x.toml:13: receive.checkpoint_memory: 1048576 bytes is under the 16MiB minimum"},
		{"no arbiter", strings.Replace(minimal, `type = "none"`, "", 1), "arbiter.type: must be set"},
		{"arbiter not accepted", strings.Replace(minimal, "= true", "= false", 1), "needs accept_split_brain = true"},
		{"unknown arbiter", strings.Replace(minimal, `"none"`, `"raft"`, 1), `x.toml:6: arbiter.type: unknown arbiter "raft": "etcd", "fence", "file", "manual" and "none" are there`},
		{"file without a table", strings.Replace(minimal, `"none"`, `"file"`, 1), `x.toml:6: arbiter.type: "file" needs a table [arbiter.file]`},
		{"file without a directory", minimal + "[arbiter.file]\ntimeout = \"9s\"\n", "arbiter.file.directory: must be set"},
		{"file in a relative directory", minimal + "[arbiter.file]\ndirectory = \"xlft\"\n", "x.toml:13: arbiter.file.directory: must be set: the absolute path"},
		{"file in the root", minimal + "[arbiter.file]\ndirectory = \"/.\"\n", "arbiter.file.directory: must be set"},
		{"file without patience", minimal + "[arbiter.file]\ndirectory = \"/d\"\ntimeout = \"10ms\"\n", "x.toml:14: arbiter.file.timeout: 10ms is not between"},
		{"etcd without a table", strings.Replace(minimal, `"none"`, `"etcd"`, 1), `x.toml:6: arbiter.type: "etcd" needs a table [arbiter.etcd]`},
		{"etcd without endpoints", minimal + "[arbiter.etcd]\nprefix = \"/x\"\n", "arbiter.etcd.endpoints: must be set"},
		{"etcd without a port", etcd(`["https://192.0.2.5"]`), `arbiter.etcd.endpoints: "https://192.0.2.5" is no URL`},
		{"etcd in clear text", etcd(`["http://192.0.2.5:2379"]`), `arbiter.etcd.endpoints: "http://192.0.2.5:2379" is not encrypted`},
		{"etcd half in clear text", etcd(`["https://192.0.2.5:2379", "http://127.0.0.1:2379"]`), "are not both encrypted"},
		{"etcd twice", etcd(`["https://192.0.2.5:2379", "https://192.0.2.5:2379"]`), "is there twice"},
		{"etcd with a user", etcd(`["https://root:x@192.0.2.5:2379"]`), "is no URL such as"},
		{"etcd without a key", etcd(`["https://192.0.2.5:2379"]`, `cert = "/c"`), "x.toml:14: arbiter.etcd.cert: cert and key belong together"},
		{"etcd with a relative path", etcd(`["https://192.0.2.5:2379"]`, `ca = "ca.crt"`), `arbiter.etcd.ca: "ca.crt" is no absolute path`},
		{"etcd with a strange prefix", etcd(`["https://192.0.2.5:2379"]`, `prefix = "xlft/"`), `arbiter.etcd.prefix: "xlft/" is no prefix`},
		{"etcd without patience", etcd(`["https://192.0.2.5:2379"]`, `timeout = "10ms"`), "arbiter.etcd.timeout: 10ms is not between 1s and 1m"},
		{"fenced too soon", strings.Replace(minimal, "= true", "= true\nfence_after = \"100ms\"", 1), "arbiter.fence_after: 100ms is not between 500ms and 5m"},
		{"arbiter asked too often", strings.Replace(minimal, "= true", "= true\ncheck_interval = \"1s\"", 1), "arbiter.check_interval: 1s is neither 0s nor between 10s and 1h"},
		{"health by a relative path", strings.Replace(minimal, "[host]", "[host]\nhealth_command = \"edac\"", 1), `host.health_command: "edac" is no absolute path of a program`},
		{"health too often", strings.Replace(minimal, "[host]", "[host]\nhealth_interval = \"1ms\"", 1), "host.health_interval: 1ms is not between 1s and 1h"},
		{"no host to ping", strings.Replace(minimal, "= true", "= true\nping = [\"192.0.2.1\", \"router\"]", 1), `x.toml:8: arbiter.ping: "router" is no IP address of a router`},
		{"this host to ping", strings.Replace(minimal, "= true", "= true\nping = [\"127.0.0.1\"]", 1), "arbiter.ping: 127.0.0.1 is this host itself"},
		{"a host to ping twice", strings.Replace(minimal, "= true", "= true\nping = [\"192.0.2.1\", \"192.0.2.1\"]", 1), "arbiter.ping: 192.0.2.1 is there twice"},
		{"no such peer in a list", minimal + "[default]\nbackups = [\"beta\", \"gamma\"]\n", "x.toml:13: default.backups: no [peer.gamma] is in this file"},
		{"a backup twice", minimal + "[default]\nbackups = [\"beta\", \"beta\"]\n", "x.toml:13: default.backups: beta is there twice"},
		{"no backups", minimal + "[default]\nbackups = []\n", "x.toml:13: default.backups: it is empty: leave it out, or name a peer"},
		{"backup and backups", minimal + "[default]\nbackup = \"beta\"\nbackups = [\"beta\"]\n", "x.toml:14: default.backups: backup is set too: set one of them"},
		{"no such peer", minimal + "[default]\nbackup = \"gamma\"\n", "x.toml:13: default.backup: no [peer.gamma] is in this file"},
		{"bad address", strings.Replace(minimal, ":7789", "", 1), `x.toml:10: peer.beta.address: "192.0.2.2" is no "host:port"`},
		{"a bad address of several", strings.Replace(minimal, `address = "192.0.2.2:7789"`, `addresses = ["192.0.2.2:7789", "192.0.2.3"]`, 1), `x.toml:10: peer.beta.addresses: "192.0.2.3" is no "host:port"`},
		{"an address twice", strings.Replace(minimal, `address = "192.0.2.2:7789"`, `addresses = ["192.0.2.2:7789", "192.0.2.2:7789"]`, 1), "peer.beta.addresses: 192.0.2.2:7789 is there twice"},
		{"address and addresses", strings.Replace(minimal, `address = "192.0.2.2:7789"`, "address = \"192.0.2.2:7789\"\naddresses = [\"192.0.2.3:7789\"]", 1), "x.toml:11: peer.beta.addresses: address is set too: set one of them"},
		{"no address", strings.Replace(minimal, `address = "192.0.2.2:7789"`, "addresses = []", 1), "x.toml:9: peer.beta: address must be set"},
		{"bad fingerprint", strings.Replace(minimal, zeros, "00", 1), `x.toml:11: peer.beta.fingerprint: fingerprint "sha256:00" is not 64 hex digits`},
		{"no fingerprint", strings.Replace(minimal, "fingerprint", "#", 1), "x.toml:9: peer.beta: fingerprint must be set"},
		{"two peers alike", minimal + "[peer.gamma]\naddress = \"192.0.2.3:1\"\nfingerprint = \"sha256:" + zeros + "\"\n", "peer beta has the same one"},
		{"disk without a path", minimal + "[domain.web1.disk.xvda]\ncache = \"none\"\n", "x.toml:12: domain.web1.disk.xvda: path must be set"},
		{"disk with a relative path", minimal + "[domain.web1.disk.xvda]\npath = \"disk\"\n", "path must be set: an absolute path"},
		{"disk with an unknown cache", minimal + "[domain.web1.disk.xvda]\npath = \"/d\"\ncache = \"unsafe\"\n", `domain.web1.disk.xvda.cache: "unsafe" is neither`},
		{"disk of an unknown kind", minimal + "[domain.web1.disk.xvda]\npath = \"/d\"\nstorage = \"drbd\"\n", `domain.web1.disk.xvda.storage: "drbd" is neither`},
		{"sectors of an odd size", minimal + "[domain.web1.disk.xvda]\npath = \"/d\"\nsector_size = 520\n", "domain.web1.disk.xvda.sector_size: 520 is neither 512 nor 4096"},
		{"shared storage without a fence", minimal + "[domain.web1.disk.xvda]\npath = \"/d\"\nstorage = \"shared\"\n", `x.toml:14: domain.web1.disk.xvda.storage: shared storage needs arbiter.type = "fence"`},
		{"shared storage in the page cache", fencing + "[domain.web1.disk.xvda]\npath = \"/d\"\nstorage = \"shared\"\ncache = \"writeback\"\n", "domain.web1.disk.xvda.cache: shared storage is never cached"},
		{"peer that can't be fenced", strings.Replace(minimal, `"none"`, `"fence"`, 1), "x.toml:9: peer.beta: arbiter.type is \"fence\": a table [peer.beta.fence] must"},
		{"fence without an agent", minimal + "[peer.beta.fence]\ntimeout = \"9s\"\n", "x.toml:12: peer.beta.fence: agent must be set"},
		{"fence with a strange option", minimal + "[peer.beta.fence]\nagent = \"/f\"\noptions = { a = [1] }\n", "peer.beta.fence: option a is neither"},
		{"fence with an action", minimal + "[peer.beta.fence]\nagent = \"/f\"\noptions = { action = \"on\" }\n", `peer.beta.fence: option "action" can't be given`},
		{"fence with an action by its earlier name", minimal + "[peer.beta.fence]\nagent = \"/f\"\noptions = { option = \"on\" }\n", `peer.beta.fence: option "option" can't be given`},
		{"fence that cycles", minimal + "[peer.beta.fence]\nagent = \"/f\"\noptions = { method = \"cycle\" }\n", `peer.beta.fence: method = "cycle" switches a host on again`},
		{"fence with the agent's delay", minimal + "[peer.beta.fence]\nagent = \"/f\"\noptions = { delay = 5 }\n", "the agent's own delay would hold up"},
		{"fence too late", minimal + "[peer.beta.fence]\nagent = \"/f\"\ndelay = \"1h\"\n", "x.toml:14: peer.beta.fence.delay: 1h0m0s is not between"},
		{"levels and an agent", minimal + "[peer.beta.fence]\nagent = \"/f\"\nlevels = [[{ agent = \"/g\" }]]\n", "x.toml:14: peer.beta.fence.levels: agent, options and timeout are those of the only agent"},
		{"no levels", minimal + "[peer.beta.fence]\nlevels = []\n", "x.toml:13: peer.beta.fence.levels: there is none"},
		{"an empty level", minimal + "[peer.beta.fence]\nlevels = [[{ agent = \"/g\" }], []]\n", "peer.beta.fence.levels: level 2 has no agent"},
		{"a level without an agent", minimal + "[peer.beta.fence]\nlevels = [[{ agent = \"/g\" }], [{ timeout = \"9s\" }]]\n", "peer.beta.fence.levels: level 2: agent must be set"},
		{"a level with an unknown key", minimal + "[peer.beta.fence]\nlevels = [[{ agent = \"/g\", plug = 1 }]]\n", "unknown key"},
		{"fence in no time", minimal + "[peer.beta.fence]\nagent = \"/f\"\ntimeout = \"1ms\"\n", "peer.beta.fence: timeout 1ms is not between 1s and 1h"},
		{"one path twice", minimal + "[domain.web1.disk.xvda]\npath = \"/d\"\n[domain.web1.disk.xvdb]\npath = \"/d\"\n", "has the same one"},
		{"disk of every domain", minimal + "[default.disk.xvda]\npath = \"/d\"\n", "default.disk: disks are a domain's own"},
		{"journal too small", minimal + "[receive]\ndisk_journal = \"1MiB\"\n", "x.toml:13: receive.disk_journal: 1048576 bytes is under the 64MiB minimum"},
		{"net buffer too small", minimal + "[default]\nnet_buffer = \"64KiB\"\n", "x.toml:13: default.net_buffer: 65536 bytes is under the 1MiB minimum"},
		{"compression", minimal + "[default]\ncompression = \"zip\"\n", `default.compression: "zip" is neither "s2" nor "none"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := config.Parse("x.toml", strings.NewReader(c.text))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v\n want %s", err, c.want)
			}
		})
	}
}

func TestMissingFile(t *testing.T) {
	_, err := config.Load("/nonexistent/xlft.toml")
	if want := "/nonexistent/xlft.toml: no such file or directory"; err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(minimal)
	f.Fuzz(func(t *testing.T, s string) {
		if c, err := config.Parse("x", strings.NewReader(s)); err == nil {
			c.For("web1")
		}
	})
}

// Earlier reference configurations had net_buffer = 0.
func TestNetBuffer(t *testing.T) {
	for set, want := range map[string]uint64{"": 64 << 20, "net_buffer = 0\n": 64 << 20, "net_buffer = \"8MiB\"\n": 8 << 20} {
		c, err := config.Parse("x.toml", strings.NewReader(minimal+"[default]\n"+set))
		if err != nil || c.Default.NetBuffer != want || c.For("web1").NetBuffer != want {
			t.Errorf("%q: %v, %v, want %d", set, c, err, want)
		}
	}
}

// Where only the mode is changed epoch_max follows, unless it was set to something
// else.
func TestEpochMaxFollowsMode(t *testing.T) {
	for _, c := range []struct {
		text string
		want time.Duration // of web1
	}{
		{"", time.Second},
		{"[default]\nmode = \"interval\"\n", 200 * time.Millisecond},
		{"[default]\nmode = \"strict\"\n", time.Second},
		{"[default]\nmode = \"interval\"\nepoch_max = \"1s\"\n", time.Second},
		{"[default]\nmode = \"event\"\nepoch_max = \"1s\"\n[domain.web1]\nmode = \"interval\"\n", 200 * time.Millisecond},
		{"[default]\nmode = \"interval\"\n[domain.web1]\nmode = \"event\"\n", time.Second},
		{"[default]\nepoch_max = \"400ms\"\n[domain.web1]\nmode = \"interval\"\n", 400 * time.Millisecond},
		{"[domain.web1]\nmode = \"interval\"\nepoch_max = \"2s\"\n", 2 * time.Second},
	} {
		cfg, err := config.Parse("x.toml", strings.NewReader(minimal+c.text))
		if err != nil || cfg.For("web1").EpochMax != c.want {
			t.Errorf("%s: %v, %v, want %v", c.text, cfg, err, c.want)
		}
	}
}

// What can be set while a domain is protected means what it means in the file.
func TestRepace(t *testing.T) {
	cfg, err := config.Parse("minimal", strings.NewReader(minimal))
	if err != nil {
		t.Fatal(err)
	}
	is := cfg.For("web1").Pacing
	for _, key := range config.PacingKeys {
		if _, err := config.Repace(is, []string{key + "=?"}); err == nil || !strings.HasPrefix(err.Error(), key+": ") {
			t.Errorf("%s=?: %v", key, err)
		}
	}
	for words, want := range map[string]string{
		"epoch_max":                 `"epoch_max" is not of the form KEY=VALUE`,
		"failure_timeout=1s":        "failure_timeout: no setting that can change while a domain is protected; mode, epoch_min,",
		"epoch_max=2ms":             "epoch_max: 2ms is not between 5ms and 1m0s",
		"epoch_max=8ms epoch_min=9": `epoch_min: "9" is no duration`,
		"epoch_min=900ms":           "epoch_min: 900ms is more than event_window_max, 500ms",
		"run_share=1":               "run_share: 1 is not between",
		"dirty_max=-1":              `dirty_max: "-1" is no number of pages`,
	} {
		if now, err := config.Repace(is, strings.Fields(words)); err == nil || !strings.Contains(err.Error(), want) || now != is {
			t.Errorf("%s: %+v, %v\n want %s", words, now, err, want)
		}
	}
	now, err := config.Repace(is, strings.Fields("mode=strict epoch_min=2ms event_window_max=80ms run_share=0.8 dirty_max=0"))
	if want := (xlft.Pacing{Mode: xlft.ModeStrict, EpochMin: 2 * time.Millisecond, EpochMax: time.Second, WindowMax: 80 * time.Millisecond, RunShare: 0.8}); err != nil || now != want {
		t.Errorf("%+v, %v", now, err)
	}
	if now, err := config.Repace(now, []string{"mode=interval"}); err != nil || now.EpochMax != 200*time.Millisecond {
		t.Errorf("interval: %+v, %v", now, err)
	}
	if now, err := config.Repace(is, nil); err != nil || now != is {
		t.Errorf("nothing: %+v, %v", now, err)
	}
}
