package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"xlft/xlft/internal/metrics"
	"xlft/xlft/internal/overview"
)

func (a *app) metricsCommand() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:     "metrics [flags]",
		Short:   "print what is known of protected domains for Prometheus",
		GroupID: "host",
		Long: `Prints metrics of all domains that are protected from here, and held for others, in
Prometheus' text format. With --textfile they are written to a file for node_exporter's
textfile collector: xlft-metrics.timer does that every 15 s.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := a.config()
			if err != nil {
				return fmt.Errorf("metrics: %w", err)
			}
			rows, err := overview.Rows(cmd.Context(), cfg.RunDir, cfg.StateDir)
			if err != nil {
				return fmt.Errorf("metrics: %w", err)
			}
			h := metrics.Host{Version: version, Drained: drained(cfg), Rows: rows}
			if file == "" {
				return metrics.Write(cmd.OutOrStdout(), h)
			}
			if err := replaceFile(file, func(w io.Writer) error { return metrics.Write(w, h) }); err != nil {
				return fmt.Errorf("metrics: %w", err)
			}
			return nil
		},
	}
	c.Flags().StringVar(&file, "textfile", "", "write them to this `FILE`, whole or not at all")
	return c
}

// replaceFile replaces a file by what write writes. Who reads it sees the old or the new one.
func replaceFile(path string, write func(io.Writer) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	err = write(f)
	err = errors.Join(err, f.Chmod(0o644), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}
