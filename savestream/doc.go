// Package savestream reads, writes and follows the streams that hold a saved
// or migrating Xen domain: libxc's migration stream (versions 2 and 3), the
// libxl migration stream (version 2) around it, and the file that "xl save"
// writes.
//
// The one rule: bytes are good only up to the last boundary. The bytes after
// the last CHECKPOINT or END record are only a part of a domain's state: never
// restore from them. A stream that stops between boundaries is
// io.ErrUnexpectedEOF, never io.EOF.
//
// Formats are those of docs/specs/libxc-migration-stream.pandoc (revision 3),
// docs/specs/libxl-migration-stream.pandoc (revision 2) and tools/xl/xl.h in
// the Xen tree. Where Xen's own tools differ from the text, the comment on the
// check says so. Only little-endian x86 streams exist; others are refused.
package savestream
