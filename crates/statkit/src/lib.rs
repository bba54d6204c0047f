//! Pure statistics of time series: trend tests, change points, false-discovery control.
