//go:build !xen && !simxen

package xen

import (
	"context"
	"encoding/json"
	"io"
	"os"
	"time"

	"xlft/xlft"
	"xlft/xlft/wire"
)

// LibDir is where libxl keeps files of the domains (XEN_LIB_DIR).
const LibDir = "/var/lib/xen"

// Host stands for libxl, libxc and xenstore of this host.
type Host struct{}

// Open returns ErrNoXen.
func Open() (*Host, error) { return nil, ErrNoXen }

func (*Host) Close()                                                    {}
func (*Host) Info() (Info, error)                                       { return Info{}, ErrNoXen }
func (*Host) Domains() ([]Domain, error)                                { return nil, ErrNoXen }
func (*Host) Lookup(string) (Domain, error)                             { return Domain{}, ErrNoXen }
func (*Host) Config(uint32) (json.RawMessage, error)                    { return nil, ErrNoXen }
func (*Host) Guest(Domain) *Guest                                       { return nil }
func (*Host) Destroy(uint32) error                                      { return ErrNoXen }
func (*Host) Pause(uint32) error                                        { return ErrNoXen }
func (*Host) Unpause(uint32) error                                      { return ErrNoXen }
func (*Host) Rename(uint32, string, string) error                       { return ErrNoXen }
func (*Host) CPUID(uint32) ([]wire.CPUIDLeaf, error)                    { return nil, ErrNoXen }
func (*Host) MostCPUID(bool) ([]wire.CPUIDLeaf, error)                  { return nil, ErrNoXen }
func (*Host) Restore(json.RawMessage, string, *os.File) (uint32, error) { return 0, ErrNoXen }
func (*Host) End(uint32) (xlft.GuestState, bool, string, error)         { return 0, false, "", ErrNoXen }
func (*Host) Create(json.RawMessage) (uint32, error)                    { return 0, ErrNoXen }
func (*Host) CoreDump(uint32, string) error                             { return ErrNoXen }
func (*Host) Paused(uint32) (bool, error)                               { return false, ErrNoXen }
func (*Host) Unfinished(uint32) (bool, error)                           { return false, ErrNoXen }
func (*Host) SoftReset(uint32, json.RawMessage) error                   { return ErrNoXen }
func (*Host) XenstoreRead(string) string                                { return "" }
func (*Host) XenstoreList(string) []string                              { return nil }

// Guest is an xlft.Guest.
type Guest struct{}

func (*Guest) Save(context.Context, io.ReaderFrom, xlft.SaveHooks) error { return ErrNoXen }
func (*Guest) Suspend(context.Context) (time.Time, error)                { return time.Time{}, ErrNoXen }
func (*Guest) Resume() error                                             { return ErrNoXen }
func (*Guest) Pause() error                                              { return ErrNoXen }
func (*Guest) Unpause() error                                            { return ErrNoXen }
func (*Guest) Destroy() error                                            { return ErrNoXen }
func (*Guest) DirtyPages() (uint64, error)                               { return 0, ErrNoXen }
func (*Guest) HoldMemory() (xlft.Memory, error)                          { return xlft.Memory{}, ErrNoXen }
func (*Guest) ReleaseMemory() error                                      { return ErrNoXen }
func (*Guest) Memory() (xlft.Memory, error)                              { return xlft.Memory{}, ErrNoXen }
func (*Guest) Inherit(string, string) error                              { return ErrNoXen }
func (*Guest) Unpopulated() (uint64, error)                              { return 0, ErrNoXen }
func (*Guest) State() (xlft.GuestState, string, error)                   { return 0, "", ErrNoXen }
