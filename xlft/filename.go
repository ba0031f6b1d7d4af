package xlft

import (
	"net/url"
	"strings"
)

// FileName is a domain's or a disk's name as a part of a path: Xen allows almost any
// byte in the name of a domain. Two names never have the same FileName.
func FileName(name string) string {
	f := url.PathEscape(name)
	if strings.HasPrefix(f, ".") { // neither hidden nor ".."
		f = "%2E" + f[1:]
	}
	return f
}

// NameOf returns the name that a FileName is of; false if it is none.
func NameOf(file string) (string, bool) {
	name, err := url.PathUnescape(file)
	return name, err == nil && FileName(name) == file
}
