"""glide: HTCondor-native glideins that hold a model in memory, and invocations that find it warm."""
