"""What `bench/regions` measures, a file each."""
