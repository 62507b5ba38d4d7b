"""serin: release a model on KServe through a canary that promotes or rolls itself back on evidence."""
