package chunkcache

const crashChild = "MSB_CHUNKCACHE_CRASH_DIR"

func crashWriter() int { return 0 }
