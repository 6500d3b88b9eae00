/* A disk that stalls or fails, and a wall clock that jumps, for one process and its children.
 *
 * Loaded with LD_PRELOAD. What it does is read at each call from the file that FAULT_INJECTOR_CONTROL names,
 * which another process maps and writes (faults/fault_injector.py has the same layout).
 *
 * Only files are concerned whose path holds `match`. A stall is in open(2), as on a network file
 * system that is gone; an error is in the calls that read, as on a disk with a bad sector.
 */
#define _GNU_SOURCE
#undef _FILE_OFFSET_BITS
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define MARKS 4096

struct control {
  double clock_jump_s;
  double stall_s;
  int error;
  char match[236];
};

static const struct control none;
static const volatile struct control *control = (const volatile struct control *)&none;
static volatile char is_bad[MARKS]; /* by descriptor: reads of it fail */

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

static int opened(const char *path, int descriptor) {
  const char *match = (const char *)control->match;
  int is_meant = path && *match && strstr(path, match) != NULL;
  if (is_meant && control->stall_s > 0) wait_s(control->stall_s);
  if (descriptor >= 0 && descriptor < MARKS) is_bad[descriptor] = is_meant && control->error;
  return descriptor;
}

static int fails(int descriptor) {
  if (descriptor < 0 || descriptor >= MARKS || !is_bad[descriptor] || !control->error) return 0;
  errno = control->error;
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
  return opened(path, REAL(open)(path, flags, mode));
}
int open64(const char *path, int flags, ...) {
  MODE(flags)
  return opened(path, REAL(open64)(path, flags, mode));
}
int openat(int folder, const char *path, int flags, ...) {
  MODE(flags)
  return opened(path, REAL(openat)(folder, path, flags, mode));
}
int openat64(int folder, const char *path, int flags, ...) {
  MODE(flags)
  return opened(path, REAL(openat64)(folder, path, flags, mode));
}

ssize_t read(int descriptor, void *buffer, size_t count) {
  return fails(descriptor) ? -1 : REAL(read)(descriptor, buffer, count);
}
ssize_t pread64(int descriptor, void *buffer, size_t count, off64_t offset) {
  return fails(descriptor) ? -1 : REAL(pread64)(descriptor, buffer, count, offset);
}
ssize_t sendfile(int target, int source, off_t *offset, size_t count) {
  return fails(source) ? -1 : REAL(sendfile)(target, source, offset, count);
}
ssize_t sendfile64(int target, int source, off64_t *offset, size_t count) {
  return fails(source) ? -1 : REAL(sendfile64)(target, source, offset, count);
}
void *mmap(void *address, size_t length, int kind, int flags, int descriptor, off_t offset) {
  return fails(descriptor) ? MAP_FAILED
                           : REAL(mmap)(address, length, kind, flags, descriptor, offset);
}
void *mmap64(void *address, size_t length, int kind, int flags, int descriptor, off64_t offset) {
  return fails(descriptor) ? MAP_FAILED
                           : REAL(mmap64)(address, length, kind, flags, descriptor, offset);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
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
