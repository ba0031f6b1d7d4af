package domconf

// Action is a libxl_action_on_shutdown, by its word in libxl's JSON. libxl leaves
// out the one that it takes for unset, which is Destroy.
type Action string

// The actions; xl.cfg(5) says what each does, in its words.
const (
	Destroy         Action = "destroy"
	Restart         Action = "restart"
	RenameRestart   Action = "restart_rename" // "rename-restart" in xl.cfg
	Preserve        Action = "preserve"
	CoredumpDestroy Action = "coredump_destroy"
	CoredumpRestart Action = "coredump_restart"
	SoftReset       Action = "soft_reset"
)

// Action returns what is to become of a domain that ended for a reason, in the
// words of xlft/internal/xen.
func (c *Config) Action(reason string) Action {
	a := Destroy // as xl does for a reason that it does not know
	switch reason {
	case "power-off":
		a = c.OnPoweroff
	case "reboot":
		a = c.OnReboot
	case "watchdog":
		a = c.OnWatchdog
	case "crash":
		a = c.OnCrash
	case "soft reset":
		a = c.OnSoftReset
	}
	if a == "" {
		return Destroy
	}
	return a
}

// Again reports whether the domain runs again after the action.
func (a Action) Again() bool {
	switch a {
	case Restart, RenameRestart, CoredumpRestart, SoftReset:
		return true
	}
	return false
}

// Again reports whether the domain runs again after any of its ends.
func (c *Config) Again() bool {
	return c.OnPoweroff.Again() || c.OnReboot.Again() || c.OnWatchdog.Again() || c.OnCrash.Again() || c.OnSoftReset.Again()
}
