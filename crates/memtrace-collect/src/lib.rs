//! A live target to bytes and gauges: HTTP scraping and /proc.
