#include "shared_array.h"

#include <cstdio>

namespace simt {
namespace {

// True where `earlier` happened before what the current thread does now.
bool ordered(const AccessRecord& earlier, const Clock& now) {
  const Thread& thread = current_thread();
  if (earlier.thread == AccessRecord::kNobody || earlier.thread == thread.linear) return true;
  if (earlier.block_barriers < now.block_barriers) return true;
  return earlier.warp == thread.warp && earlier.warp_barriers < now.warp_barriers;
}

void note(AccessRecord& record, const Clock& now) {
  const Thread& thread = current_thread();
  const bool same_phase = record.thread != AccessRecord::kNobody && record.block_barriers == now.block_barriers;
  const bool joins = same_phase && record.thread != thread.linear && !ordered(record, now);
  record.thread = joins ? AccessRecord::kSeveral : thread.linear;
  record.warp = joins && record.warp != thread.warp ? AccessRecord::kSeveral : thread.warp;
  record.block_barriers = now.block_barriers;
  record.warp_barriers = now.warp_barriers;
}

[[noreturn]] void fail_race(const char* access, const AccessRecord& other, const char* name, int64_t index,
                            const Where& where) {
  char other_thread[32] = "several threads";
  if (other.thread >= 0) std::snprintf(other_thread, sizeof(other_thread), "thread %d", other.thread);
  char message[256];
  std::snprintf(message, sizeof(message), "race: %s of %s[%lld] is not separated by a barrier from an access by %s",
                access, name, static_cast<long long>(index), other_thread);
  fail(message, where);
}

}  // namespace

void note_read(ElementRecord& record, const char* name, int64_t index, const Where& where) {
  const Clock now = current_clock();
  if (!ordered(record.write, now)) fail_race("read", record.write, name, index, where);
  note(record.read, now);
}

void note_write(ElementRecord& record, const char* name, int64_t index, const Where& where) {
  const Clock now = current_clock();
  if (!ordered(record.write, now)) fail_race("write", record.write, name, index, where);
  if (!ordered(record.read, now)) fail_race("write", record.read, name, index, where);
  note(record.write, now);
}

void fail_bounds(const char* name, int64_t index, int64_t count, const Where& where) {
  char message[256];
  std::snprintf(message, sizeof(message), "index %lld is outside the shared array %s of %lld elements",
                static_cast<long long>(index), name, static_cast<long long>(count));
  fail(message, where);
}

}  // namespace simt
