package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"xlft/xlft/internal/restore"
)

func (a *app) workerCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "restore-worker",
		Short:  "restore one domain (started by receive)",
		Args:   cobra.NoArgs,
		Hidden: true,
		RunE: func(*cobra.Command, []string) error {
			log := daemonLog()
			if err := restore.Work(log, keeperOf(log)); err != nil {
				return fmt.Errorf("restore-worker: %w", err)
			}
			return nil
		},
	}
}

// keeperOf starts the keeper of a domain that was taken over.
func keeperOf(log *zap.Logger) func(domain string) {
	return func(domain string) {
		ctx, cancel := context.WithTimeout(context.Background(), keeperPatience)
		defer cancel()
		if err := startKeeper(ctx, domain); err != nil {
			log.Error("nobody starts this domain again when it reboots or crashes", zap.String("domain", domain), zap.Error(err))
		}
	}
}

// keeperPatience is what systemd gets to take the order to start a keeper.
const keeperPatience = 10 * time.Second
