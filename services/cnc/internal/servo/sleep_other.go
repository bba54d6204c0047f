//go:build !linux

package servo

import "time"

func prepareThread() {}

func sleepUntil(deadline time.Time) { time.Sleep(time.Until(deadline)) }
