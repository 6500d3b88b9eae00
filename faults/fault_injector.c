/* A disk that stalls, fails or is full, and a wall clock that jumps, for one process and its children.
 *
 * Loaded with LD_PRELOAD. What it does is read at each call from the file that FAULT_INJECTOR_CONTROL names,
 * which another process maps and writes (faults/fault_injector.py has the same layout).
 *
 * Only files are concerned whose path holds `match`. A stall is in open(2), as on a network file
 * system that is gone. An error is in the calls that read, as on a disk with a bad sector; ENOSPC in
 * those that write and create; EMFILE in open(2). A new number of trims gives free memory back.
 */
#define _GNU_SOURCE
#undef _FILE_OFFSET_BITS
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

struct control {
  double clock_jump_s;
  double stall_s;
  int error;
  int trims;
  char match[232];
};

static const struct control none;
static const volatile struct control *control = (const volatile struct control *)&none;

#define REAL(name) \
  ({ \
    static __typeof__(&name) real; \
    if (real == NULL) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name); \
    real; \
  })

__attribute__((constructor)) static void map_control(void) {
  const char *path = getenv("FAULT_INJECTOR_CONTROL");
  int descriptor = path ? syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC) : -1;
  if (descriptor < 0) return;
  void *found = REAL(mmap)(NULL, sizeof none, PROT_READ, MAP_SHARED, descriptor, 0);
  if (found != MAP_FAILED) control = found;
  syscall(SYS_close, descriptor);
}

static void wait_s(double seconds) {
  struct timespec rest = {(time_t)seconds, (long)((seconds - (time_t)seconds) * 1e9)};
  while (nanosleep(&rest, &rest) != 0 && errno == EINTR) {}
}

static int is_meant(const char *path) {
  const char *match = (const char *)control->match;
  return path && *match && strstr(path, match) != NULL;
}

static void await(const char *path) {
  if (control->stall_s > 0 && is_meant(path)) wait_s(control->stall_s);
}

static int refuses(const char *path, int flags) {
  int error = control->error;
  if (error != EMFILE && (error != ENOSPC || !(flags & O_CREAT))) return 0;
  if (!is_meant(path)) return 0;
  errno = error;
  return 1;
}

static int fails(int descriptor, int error) {
  char link[32], path[4096];
  if (control->error != error) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  ssize_t length = readlink(link, path, sizeof path - 1);
  path[length < 0 ? 0 : length] = '\0';
  if (!is_meant(path)) return 0;
  errno = error;
  return 1;
}

#define MODE(flags) \
  mode_t mode = 0; \
  if ((flags) & (O_CREAT | __O_TMPFILE)) { \
    va_list rest; \
    va_start(rest, flags); \
    mode = va_arg(rest, mode_t); \
    va_end(rest); \
  }

int open(const char *path, int flags, ...) {
  MODE(flags)
  await(path);
  return refuses(path, flags) ? -1 : REAL(open)(path, flags, mode);
}
int open64(const char *path, int flags, ...) {
  MODE(flags)
  await(path);
  return refuses(path, flags) ? -1 : REAL(open64)(path, flags, mode);
}
int openat(int folder, const char *path, int flags, ...) {
  MODE(flags)
  await(path);
  return refuses(path, flags) ? -1 : REAL(openat)(folder, path, flags, mode);
}
int openat64(int folder, const char *path, int flags, ...) {
  MODE(flags)
  await(path);
  return refuses(path, flags) ? -1 : REAL(openat64)(folder, path, flags, mode);
}

ssize_t read(int descriptor, void *buffer, size_t count) {
  return fails(descriptor, EIO) ? -1 : REAL(read)(descriptor, buffer, count);
}
ssize_t pread64(int descriptor, void *buffer, size_t count, off64_t offset) {
  return fails(descriptor, EIO) ? -1 : REAL(pread64)(descriptor, buffer, count, offset);
}
ssize_t write(int descriptor, const void *buffer, size_t count) {
  return fails(descriptor, ENOSPC) ? -1 : REAL(write)(descriptor, buffer, count);
}
ssize_t pwrite64(int descriptor, const void *buffer, size_t count, off64_t offset) {
  return fails(descriptor, ENOSPC) ? -1 : REAL(pwrite64)(descriptor, buffer, count, offset);
}
int mkdir(const char *path, mode_t mode) {
  return refuses(path, O_CREAT) ? -1 : REAL(mkdir)(path, mode);
}
ssize_t sendfile(int target, int source, off_t *offset, size_t count) {
  return fails(source, EIO) ? -1 : REAL(sendfile)(target, source, offset, count);
}
ssize_t sendfile64(int target, int source, off64_t *offset, size_t count) {
  return fails(source, EIO) ? -1 : REAL(sendfile64)(target, source, offset, count);
}
void *mmap(void *address, size_t length, int kind, int flags, int descriptor, off_t offset) {
  return fails(descriptor, EIO) ? MAP_FAILED
                           : REAL(mmap)(address, length, kind, flags, descriptor, offset);
}
void *mmap64(void *address, size_t length, int kind, int flags, int descriptor, off64_t offset) {
  return fails(descriptor, EIO) ? MAP_FAILED
                           : REAL(mmap64)(address, length, kind, flags, descriptor, offset);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
  static volatile int trims; /* every process looks at a clock once a second at least */
  if (control->trims != trims) {
    trims = control->trims;
    malloc_trim(0);
  }
  int status = REAL(clock_gettime)(clock, now);
  if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)
    now->tv_sec += (time_t)control->clock_jump_s;
  return status;
}
int gettimeofday(struct timeval *restrict now, void *restrict zone) {
  int status = REAL(gettimeofday)(now, zone);
  now->tv_sec += (time_t)control->clock_jump_s;
  return status;
}
time_t time(time_t *now) {
  time_t found = REAL(time)(NULL) + (time_t)control->clock_jump_s;
  if (now) *now = found;
  return found;
}
