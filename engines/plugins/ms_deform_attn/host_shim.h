// Replaces what CUDA C++ adds to C++, so that the host can compile kernel.cu.
//
// cuda_fp16.h and cuda_bf16.h are NVIDIA's own, with their host arithmetic. Only the language is
// replaced: a loop sets the thread and block indices, and CUDA's keywords expand to nothing.
#pragma once

#include <cmath>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <vector_types.h>

#undef __device__
#undef __global__
#define __device__
#define __global__

static uint3 threadIdx, blockIdx;
static dim3 blockDim, gridDim;

static inline int min(int a, int b) { return a < b ? a : b; }

// Runs the kernel for all threads of all blocks, one after the other. kernel.cu has no barrier.
template <typename Kernel>
static void launch(dim3 grid, dim3 block, Kernel kernel) {
  gridDim = grid, blockDim = block;
  for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y)
    for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x)
      for (threadIdx.y = 0; threadIdx.y < block.y; ++threadIdx.y)
        for (threadIdx.x = 0; threadIdx.x < block.x; ++threadIdx.x) kernel();
}
