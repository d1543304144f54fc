// What ThreadSanitizer has to be told: order that comes from the emulator's barriers, and the emulator's own state,
// which threads of a block share without it. Nothing in other builds.
#pragma once

#ifdef SIMT_THREAD_SANITIZER
#include <sanitizer/tsan_interface.h>

extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

namespace simt {

// What the current thread did before publish_to(object) happened before what another does after learn_from(object).
inline void publish_to([[maybe_unused]] void* object) {
#ifdef SIMT_THREAD_SANITIZER
  __tsan_release(object);
#endif
}
inline void learn_from([[maybe_unused]] void* object) {
#ifdef SIMT_THREAD_SANITIZER
  __tsan_acquire(object);
#endif
}

// While one exists, the current fiber's accesses are not checked.
class EmulatorSection {
 public:
  EmulatorSection() {
#ifdef SIMT_THREAD_SANITIZER
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
#endif
  }
  EmulatorSection(const EmulatorSection&) = delete;
  EmulatorSection& operator=(const EmulatorSection&) = delete;
  ~EmulatorSection() {
#ifdef SIMT_THREAD_SANITIZER
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
#endif
  }
};

}  // namespace simt
