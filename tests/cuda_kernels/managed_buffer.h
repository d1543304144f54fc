// What kernel_test.h needs of the emulator where the tests run on a GPU: buffers in managed memory that end at a
// multiple of 256 bytes, at first all bits set. Reading an element waits for the kernels that were given the buffer.
// What lies outside is watched by compute-sanitizer, under which the tests are to be run too.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace simt {

inline void set_seed(uint64_t) {}  // the GPU has its own schedule

template <class Work>
void set_predecessor(const Work& work) {  // the emulator delays it
  work();
}

inline void require_success(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "CUDA ERROR: %s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

template <class T>
class GlobalBuffer {
 public:
  explicit GlobalBuffer(size_t count) : count_(count) {
    constexpr size_t kAlignment = 256;
    const size_t bytes = count * sizeof(T), padded = (bytes + kAlignment) / kAlignment * kAlignment;
    require_success(cudaMallocManaged(&memory_, padded), "cudaMallocManaged");
    std::memset(memory_, 0xff, padded);
    data_ = reinterpret_cast<T*>(static_cast<char*>(memory_) + padded - bytes);
  }
  GlobalBuffer(const GlobalBuffer&) = delete;
  GlobalBuffer& operator=(const GlobalBuffer&) = delete;
  ~GlobalBuffer() {
    wait();
    cudaFree(memory_);
  }

  T* data() const {
    in_use_ = true;
    return data_;
  }
  size_t size() const { return count_; }
  T& operator[](size_t index) const {
    wait();
    return data_[index];
  }
  void check() const { wait(); }

 private:
  void wait() const {
    if (in_use_) require_success(cudaDeviceSynchronize(), "a kernel failed");
    in_use_ = false;
  }

  void* memory_ = nullptr;
  T* data_;
  size_t count_;
  mutable bool in_use_ = false;  // a kernel may be writing it
};

}  // namespace simt
