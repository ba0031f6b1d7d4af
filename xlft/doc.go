// Package xlft has the words that both sides of a protection share.
package xlft
