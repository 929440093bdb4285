// Compiles kernel.cu for the host: one C function per combination of types, called by host.py.

#include "host_shim.h"

#define RVOS_HOST
#include "kernel.cu"

namespace {

template <typename T, typename O, typename L>
void run(const void* value, const int* level_shapes, const float* reference_points,
         const void* sampling_offsets, const void* attention_logits, int pixels, int queries,
         int heads, int levels, int points, void* output, int grid_x, int grid_y, int block_x,
         int block_y) {
  launch(dim3(grid_x, grid_y), dim3(block_x, block_y), [&] {
    rvos::ms_deform_attn(static_cast<const T*>(value), level_shapes, reference_points,
                         static_cast<const O*>(sampling_offsets),
                         static_cast<const L*>(attention_logits), pixels, queries, heads, levels,
                         points, static_cast<T*>(output));
  });
}

using fp32 = float;
using fp16 = __half;
using bf16 = __nv_bfloat16;

}  // namespace

#define RVOS_EXPORT(T, O, L)                                                                      \
  extern "C" void rvos_##T##_##O##_##L(                                                           \
      const void* value, const int* level_shapes, const float* reference_points,                  \
      const void* sampling_offsets, const void* attention_logits, int pixels, int queries,        \
      int heads, int levels, int points, void* output, int grid_x, int grid_y, int block_x,       \
      int block_y) {                                                                              \
    run<T, O, L>(value, level_shapes, reference_points, sampling_offsets, attention_logits,       \
                 pixels, queries, heads, levels, points, output, grid_x, grid_y, block_x, block_y); \
  }

RVOS_EXPORT(fp32, fp32, fp32)
RVOS_EXPORT(fp16, fp16, fp16)
RVOS_EXPORT(fp16, fp16, fp32)
RVOS_EXPORT(fp16, fp32, fp16)
RVOS_EXPORT(fp16, fp32, fp32)
RVOS_EXPORT(bf16, bf16, bf16)
RVOS_EXPORT(bf16, bf16, fp32)
RVOS_EXPORT(bf16, fp32, bf16)
RVOS_EXPORT(bf16, fp32, fp32)
