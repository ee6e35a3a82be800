/* Loaded with LD_PRELOAD under `flaredb start`: notes what has been synced, so that a test can take away the rest.
 *
 * kill -9 does not lose the page cache; power does. This shim appends to the file that $FLAREDB_SYNC_JOURNAL names
 * one line for each sync and rename:
 *
 *     S <bytes> <path>      up to here the file is on the platter
 *     R <from>\t<to>        it has another name now
 *
 * After the kill the test cuts every file of the data directory to its last S line (tests/src/power.rs). That is
 * what a crash does to files that are written from front to back; RocksDB and raft-engine write no others.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

/* A process that holds more files open than this stops noting the further ones, and the test loses more of them. */
#define FDS 65536

/* One past the last byte written through this descriptor; 0: ask the file. */
static volatile long written_to[FDS];
static int journal = -1;

static int (*real_fsync)(int);
static int (*real_fdatasync)(int);
static int (*real_rename)(const char *, const char *);
static ssize_t (*real_pwrite64)(int, const void *, size_t, off_t);
static ssize_t (*real_write)(int, const void *, size_t);
static int (*real_close)(int);

__attribute__((constructor)) static void start(void) {
  real_fsync = dlsym(RTLD_NEXT, "fsync");
  real_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
  real_rename = dlsym(RTLD_NEXT, "rename");
  real_pwrite64 = dlsym(RTLD_NEXT, "pwrite64");
  real_write = dlsym(RTLD_NEXT, "write");
  real_close = dlsym(RTLD_NEXT, "close");
  const char *path = getenv("FLAREDB_SYNC_JOURNAL");
  if (path) journal = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
}

static void note(const char *format, ...) {
  char line[2 * PATH_MAX + 64];
  va_list arguments;
  va_start(arguments, format);
  int length = vsnprintf(line, sizeof line, format, arguments);
  va_end(arguments);
  /* O_APPEND: lines of several threads do not mix. */
  if (journal >= 0 && length > 0 && real_write(journal, line, length) < 0) abort();
}

static void raise_mark(int fd, long end) {
  if (fd < 0 || fd >= FDS) return;
  long seen;
  while ((seen = written_to[fd]) < end && !__sync_bool_compare_and_swap(&written_to[fd], seen, end)) {}
}

/* Before the sync: what is written while it runs may not be on the platter. */
static long mark(int fd) {
  if (fd >= 0 && fd < FDS && written_to[fd] > 0) return written_to[fd];
  struct stat status;
  return fstat(fd, &status) == 0 && S_ISREG(status.st_mode) ? status.st_size : -1;
}

static void note_synced(int fd, long bytes) {
  char link[64], path[PATH_MAX];
  if (bytes < 0) return;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length <= 0 || path[0] != '/') return;
  path[length] = 0;
  note("S %ld %s\n", bytes, path);
}

int fsync(int fd) {
  long bytes = mark(fd);
  int result = real_fsync(fd);
  if (result == 0) note_synced(fd, bytes);
  return result;
}

int fdatasync(int fd) {
  long bytes = mark(fd);
  int result = real_fdatasync(fd);
  if (result == 0) note_synced(fd, bytes);
  return result;
}

ssize_t pwrite64(int fd, const void *data, size_t size, off_t at) {
  ssize_t done = real_pwrite64(fd, data, size, at);
  if (done > 0) raise_mark(fd, at + done);
  return done;
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t at) { return pwrite64(fd, data, size, at); }

ssize_t write(int fd, const void *data, size_t size) {
  ssize_t done = real_write(fd, data, size);
  if (done > 0 && fd >= 0 && fd < FDS) {
    off_t at = lseek(fd, 0, SEEK_CUR);
    if (at > 0) raise_mark(fd, at);
  }
  return done;
}

int close(int fd) {
  if (fd >= 0 && fd < FDS) written_to[fd] = 0;
  return real_close(fd);
}

int rename(const char *from, const char *to) {
  char path[PATH_MAX];
  int result = real_rename(from, to);
  if (result == 0 && realpath(to, path)) note("R %s\t%s\n", from, path);
  return result;
}
