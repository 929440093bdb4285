// Replaces what CUDA C++ adds to C++, so that the host can compile kernel.cu.
//
// cuda_fp16.h and cuda_bf16.h are NVIDIA's own, with their host arithmetic. Only the language is
// replaced: a loop sets the thread and block indices, and CUDA's keywords expand to nothing.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <memory>
#include <ucontext.h>
#include <vector_types.h>

#undef __device__
#undef __global__
#define __device__
#define __global__

static uint3 threadIdx, blockIdx;
static dim3 blockDim, gridDim;

static inline int min(int a, int b) { return a < b ? a : b; }

template <typename To, typename From>
static inline To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

static inline float __int_as_float(unsigned bits) { return same_bits<float>(bits); }
static inline float __uint_as_float(unsigned bits) { return same_bits<float>(bits); }
static inline int __float_as_int(float number) { return same_bits<int>(number); }

static inline void __stwb(uint4* to, uint4 raw) { *to = raw; }

// Runs the kernel for all threads of all blocks, one after the other; it must not shuffle.
template <typename Kernel>
static void launch(dim3 grid, dim3 block, Kernel kernel) {
  gridDim = grid, blockDim = block;
  for (blockIdx.z = 0; blockIdx.z < grid.z; ++blockIdx.z)
    for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y)
      for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x)
        for (threadIdx.y = 0; threadIdx.y < block.y; ++threadIdx.y)
          for (threadIdx.x = 0; threadIdx.x < block.x; ++threadIdx.x) kernel();
}

// A warp for kernels that shuffle: every thread has a stack of its own. A thread that shuffles
// waits until all others of its warp have come to the same shuffle, or have returned.
class Warp {
 public:
  static constexpr int kLanes = 32;

  template <typename Kernel>
  void run(int threads, int first, Kernel& kernel) {
    count_ = threads, first_ = first, living_ = threads;
    body_ = [](void* given) { (*static_cast<Kernel*>(given))(); };
    kernel_ = &kernel;
    for (int lane = 0; lane < count_; ++lane) {
      Lane& made = lanes_[lane];
      if (!made.stack) made.stack.reset(new char[kStack]);
      made.shuffles = 0, made.finished = false;
      getcontext(&made.context);
      made.context.uc_stack.ss_sp = made.stack.get();
      made.context.uc_stack.ss_size = kStack;
      made.context.uc_link = nullptr;
      makecontext(&made.context, &Warp::start, 0);
    }
    switch_to(0, &caller_);
  }

  // Returns the word of a lane at the same shuffle, which must have the same kind.
  unsigned exchange(unsigned word, int kind, int source) {
    const int self = lane_, parity = lanes_[self].shuffles++ & 1;
    word_[parity][self] = word, kind_[parity][self] = kind;
    // The others run up to their own shuffle, one after the other. A lane before this one may then
    // be at the next shuffle already, so there are two words of each.
    if (living_ > 1) switch_to(next_living(), &lanes_[self].context);
    const int lead = source < count_ ? lanes_[source].shuffles - lanes_[self].shuffles : -1;
    if (source >= count_ || lead < 0 || lead > 1 || kind_[parity][source] != kind) {
      std::fprintf(stderr, "lane %d reads lane %d, which is not at this shuffle\n", self, source);
      std::abort();
    }
    return word_[parity][source];
  }

  int lane() const { return lane_; }

 private:
  static constexpr int kStack = 1 << 18;
  struct Lane {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    int shuffles;
    bool finished;
  };

  static void start();

  int next_living() const {
    int lane = lane_;
    do lane = (lane + 1) % count_;
    while (lanes_[lane].finished);
    return lane;
  }

  void switch_to(int lane, ucontext_t* from) {
    lane_ = lane;
    const int thread = first_ + lane;
    threadIdx.x = thread % blockDim.x, threadIdx.y = thread / blockDim.x;
    swapcontext(from, &lanes_[lane].context);
  }

  void finish() {
    Lane& self = lanes_[lane_];
    self.finished = true;
    if (--living_ > 0) switch_to(next_living(), &self.context);
    else swapcontext(&self.context, &caller_);
  }

  Lane lanes_[kLanes];
  unsigned word_[2][kLanes];
  int kind_[2][kLanes];
  int count_ = 0, first_ = 0, living_ = 0, lane_ = 0;
  ucontext_t caller_;
  void (*body_)(void*) = nullptr;
  void* kernel_ = nullptr;
};

static Warp warp;

inline void Warp::start() {
  warp.body_(warp.kernel_);
  warp.finish();
}

static inline void require_whole_warp(unsigned mask) {
  if (mask != 0xffffffffu) std::fprintf(stderr, "only shuffles of whole warps are here\n"), std::abort();
}

template <typename Number>
static Number __shfl_sync(unsigned mask, Number number, int source, int width = 32) {
  require_whole_warp(mask);
  const int from = (warp.lane() & ~(width - 1)) | (source & (width - 1));
  return same_bits<Number>(warp.exchange(same_bits<unsigned>(number), width, from));
}

template <typename Number>
static Number __shfl_xor_sync(unsigned mask, Number number, int bits, int width = 32) {
  require_whole_warp(mask);
  const int from = warp.lane() ^ bits;
  return same_bits<Number>(warp.exchange(same_bits<unsigned>(number), 64 * width + bits, from));
}

// Runs the kernel for all threads, warp by warp; the threads of a warp may shuffle.
template <typename Kernel>
static void launch_warps(dim3 grid, dim3 block, Kernel kernel) {
  gridDim = grid, blockDim = block;
  const int threads = block.x * block.y;
  for (blockIdx.z = 0; blockIdx.z < grid.z; ++blockIdx.z)
    for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y)
      for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x)
        for (int first = 0; first < threads; first += Warp::kLanes)
          warp.run(min(Warp::kLanes, threads - first), first, kernel);
}
