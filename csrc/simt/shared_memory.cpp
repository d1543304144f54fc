#include "shared_memory.h"

#include <cstdio>
#include <cstdlib>
#include <new>

namespace simt {
namespace {

constexpr size_t kAlignment = 1024;  // what the swizzled tiles of bulk copies need

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

struct Region {
  size_t offset;
  size_t bytes;
  size_t element_bytes;
  std::unique_ptr<SharedStorage> storage;
};
std::vector<Region> regions;
size_t dynamic_bytes = 0;

}  // namespace

void SharedStorage::Free::operator()(void* memory) const { std::free(memory); }

SharedStorage::SharedStorage(const char* name, size_t element_bytes, int64_t count)
    : name_(name), element_bytes_(element_bytes), count_(count), elements_(count) {
  const size_t bytes = (element_bytes * count + kAlignment - 1) / kAlignment * kAlignment;
  bytes_.reset(static_cast<char*>(std::aligned_alloc(kAlignment, bytes)));
  if (bytes_ == nullptr) throw std::bad_alloc();
}

void SharedStorage::reset_for_new_block() {
  const uint64_t running = current_clock().block;
  if (block_ == running) return;
  block_ = running;
  std::memset(bytes_.get(), 0xff, element_bytes_ * count_);
  for (Element& element : elements_) element = Element{};
}

void SharedStorage::check_bounds(int64_t index, int64_t count, const Where& where) const {
  if (index >= 0 && index + count <= count_) return;
  char message[256];
  std::snprintf(message, sizeof(message), "index %lld is outside the shared array %s of %lld elements",
                static_cast<long long>(index < 0 ? index : index + count - 1), name_, static_cast<long long>(count_));
  fail(message, where);
}

const void* SharedStorage::read(int64_t index, int64_t count, const Where& where) {
  check_bounds(index, count, where);
  reset_for_new_block();
  const Clock now = current_clock();
  for (int64_t i = index; i < index + count; ++i) {
    Element& element = elements_[i];
    if (!ordered(element.write, now)) fail_race("read", element.write, name_, i, where);
    note(element.read, now);
  }
  return address(index);
}

void* SharedStorage::write(int64_t index, int64_t count, const Where& where) {
  check_bounds(index, count, where);
  reset_for_new_block();
  const Clock now = current_clock();
  for (int64_t i = index; i < index + count; ++i) {
    Element& element = elements_[i];
    if (!ordered(element.write, now)) fail_race("write", element.write, name_, i, where);
    if (!ordered(element.read, now)) fail_race("write", element.read, name_, i, where);
    note(element.write, now);
  }
  return address(index);
}

SharedStorage& dynamic_region(size_t offset, size_t element_bytes, int64_t count, const char* name,
                              const Where& where) {
  const size_t bytes = element_bytes * count;
  for (const Region& region : regions) {
    if (region.offset == offset && region.bytes == bytes && region.element_bytes == element_bytes)
      return *region.storage;
    if (offset < region.offset + region.bytes && region.offset < offset + bytes)
      fail("regions of dynamic shared memory overlap", where);
  }
  if (offset % element_bytes != 0) fail("a region of dynamic shared memory is not aligned to its elements", where);
  if (offset + bytes > dynamic_bytes) fail("a region exceeds the launch's dynamic shared memory", where);
  regions.push_back({offset, bytes, element_bytes, std::make_unique<SharedStorage>(name, element_bytes, count)});
  return *regions.back().storage;
}

void start_dynamic_shared(size_t bytes) {
  regions.clear();
  dynamic_bytes = bytes;
}

}  // namespace simt
