// Lets labels.go declare functions without a body.
