#include "shared_memory.h"

#include <cstdio>
#include <cstdlib>
#include <new>

#include "sanitizer.h"

namespace simt {
namespace {

constexpr size_t kAlignment = 1024;  // what the swizzled tiles of bulk copies need

[[noreturn]] void fail_race(const char* access, const char* name, int64_t index, const Instant& other,
                            const Where& where) {
  char actor[64] = "an asynchronous copy that was not waited for";
  if (other.actor < kMaxThreads) std::snprintf(actor, sizeof(actor), "an access by thread %d", other.actor);
  char message[256];
  std::snprintf(message, sizeof(message), "race: %s of %s[%lld] is not separated by a barrier from %s", access, name,
                static_cast<long long>(index), actor);
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

// What happened before the current access is implied by it. The others are only looked through before they would need
// more memory: each time would take the square of the number of threads where all of them read an element.
void SharedStorage::Accesses::add_current() {
  if (!has_happened(latest)) {
    if (others == nullptr) others = std::make_unique<std::vector<Instant>>();
    if (others->size() == others->capacity()) std::erase_if(*others, has_happened);
    others->push_back(latest);
  }
  latest = current_instant();
}

const Instant* SharedStorage::Accesses::not_happened() const {
  if (!has_happened(latest)) return &latest;
  if (others == nullptr) return nullptr;
  for (const Instant& other : *others) {
    if (!has_happened(other)) return &other;
  }
  return nullptr;
}

SharedStorage::SharedStorage(const char* name, size_t element_bytes, int64_t count, size_t offset)
    : name_(name),
      element_bytes_(static_cast<int64_t>(element_bytes)),
      count_(count),
      offset_(static_cast<int64_t>(offset)),
      elements_(count) {
  const size_t bytes = (element_bytes * count + kAlignment - 1) / kAlignment * kAlignment;
  bytes_.reset(static_cast<char*>(std::aligned_alloc(kAlignment, bytes)));
  if (bytes_ == nullptr) throw std::bad_alloc();
}

void SharedStorage::reset_for_new_block() {
  if (block_ == current_block()) return;
  block_ = current_block();
  std::memset(bytes_.get(), 0xff, element_bytes_ * count_);
  for (Element& element : elements_) element.restart(Instant{}, false);
}

SharedStorage::Range SharedStorage::begin_access(int64_t index, int64_t bytes, const Where& where) {
  const Range range{index, index + (bytes + element_bytes_ - 1) / element_bytes_};
  if (index < 0 || range.end > count_) {
    char message[256];
    std::snprintf(message, sizeof(message), "index %lld is outside the shared array %s of %lld elements",
                  static_cast<long long>(index < 0 ? index : range.end - 1), name_, static_cast<long long>(count_));
    fail(message, where);
  }
  if (index * element_bytes_ % bytes != 0) {
    char message[256];
    std::snprintf(message, sizeof(message), "an access of %lld bytes to %s[%lld] is not aligned",
                  static_cast<long long>(bytes), name_, static_cast<long long>(index));
    fail(message, where);
  }
  reset_for_new_block();
  return range;
}

void SharedStorage::check_landed(int64_t index, const Where& where) const {
  if (!elements_[index].in_flight) return;
  char message[256];
  std::snprintf(message, sizeof(message), "%s[%lld] is used before an asynchronous copy into it was waited for", name_,
                static_cast<long long>(index));
  fail(message, where);
}

void SharedStorage::check_after_write(const char* access, int64_t index, const Where& where) const {
  check_landed(index, where);
  const Instant& write = elements_[index].write;
  if (!has_happened(write)) fail_race(access, name_, index, write, where);
}

void SharedStorage::check_after(const Accesses& others, const char* access, int64_t index, const Where& where) const {
  const Instant* const other = others.not_happened();
  if (other != nullptr) fail_race(access, name_, index, *other, where);
}

void SharedStorage::check_after_all(const char* access, int64_t index, const Where& where) const {
  check_after_write(access, index, where);
  check_after(elements_[index].reads, access, index, where);
  check_after(elements_[index].updates, access, index, where);
}

char* SharedStorage::access(const char* name, Accesses Element::* own, Accesses Element::* disturbing, int64_t index,
                            int64_t bytes, const Where& where) {
  const EmulatorSection section;
  const Range range = begin_access(index, bytes, where);
  for (int64_t i = range.begin; i < range.end; ++i) {
    check_after_write(name, i, where);
    check_after(elements_[i].*disturbing, name, i, where);
    (elements_[i].*own).add_current();
  }
  return address(index);
}

const void* SharedStorage::read(int64_t index, int64_t bytes, const Where& where) {
  return access("read", &Element::reads, &Element::updates, index, bytes, where);
}

void* SharedStorage::write(int64_t index, int64_t bytes, const Where& where) {
  const EmulatorSection section;
  const Range range = begin_access(index, bytes, where);
  for (int64_t i = range.begin; i < range.end; ++i) {
    check_after_all("write", i, where);
    elements_[i].restart(current_instant(), false);
  }
  return address(index);
}

void* SharedStorage::update(int64_t index, int64_t bytes, const Where& where) {
  return access("atomic operation", &Element::updates, &Element::reads, index, bytes, where);
}

void SharedStorage::start_copy(int64_t index, int64_t bytes, const Where& where) {
  const EmulatorSection section;
  const Range range = begin_access(index, bytes, where);
  for (int64_t i = range.begin; i < range.end; ++i) {
    check_after_all("asynchronous write", i, where);
    elements_[i].restart(Instant{}, true);
  }
}

void SharedStorage::land(int64_t index, const void* data, int64_t bytes, const Instant& instant) {
  std::memcpy(address(index), data, bytes);
  for (int64_t i = index; i * element_bytes_ < index * element_bytes_ + bytes; ++i) {
    elements_[i].restart(instant, false);
  }
}

const void* SharedStorage::read_by_async_proxy(int64_t index, int64_t bytes, const Where& where) {
  const EmulatorSection section;
  const Range range = begin_access(index, bytes, where);
  for (int64_t i = range.begin; i < range.end; ++i) {
    check_after_write("asynchronous read", i, where);
    check_after(elements_[i].updates, "asynchronous read", i, where);
    if (!is_fenced(elements_[i].write)) {
      char message[256];
      std::snprintf(message, sizeof(message),
                    "%s[%lld] is read by an asynchronous unit without fence_async_proxy after its write", name_,
                    static_cast<long long>(i));
      fail(message, where);
    }
    elements_[i].reads.add_current();
  }
  return address(index);
}

SharedStorage& dynamic_region(size_t offset, size_t element_bytes, int64_t count, const char* name,
                              const Where& where) {
  const EmulatorSection section;
  const size_t bytes = element_bytes * count;
  for (const Region& region : regions) {
    if (region.offset == offset && region.bytes == bytes && region.element_bytes == element_bytes)
      return *region.storage;
    if (offset < region.offset + region.bytes && region.offset < offset + bytes)
      fail("regions of dynamic shared memory overlap", where);
  }
  if (offset % element_bytes != 0) fail("a region of dynamic shared memory is not aligned to its elements", where);
  if (offset + bytes > dynamic_bytes) fail("a region exceeds the launch's dynamic shared memory", where);
  regions.push_back(
      {offset, bytes, element_bytes, std::make_unique<SharedStorage>(name, element_bytes, count, offset)});
  return *regions.back().storage;
}

void start_dynamic_shared(size_t bytes) {
  regions.clear();
  dynamic_bytes = bytes;
}

}  // namespace simt
