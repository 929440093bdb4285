// A CUDA driver for two tests. The real cuda.bindings load it in place of libcuda.so.1. Memory is
// the host's, and copies run at once. A launch of the plugin's kernel writes what it was given. This
// shows that calls get their arguments and that what was made is freed, and nothing about a GPU.

#include <dlfcn.h>

#include <cstdlib>
#include <cstring>
#include <initializer_list>

namespace {

enum Kind { kContext, kStream, kEvent, kDevice, kPinned, kModule, kKinds };
int living[kKinds];
int current = 0;

int make(void** handle, Kind kind) {
  if (current == 0) return 201;
  *handle = std::malloc(8);
  ++living[kind];
  return 0;
}

int drop(void* handle, Kind kind) {
  std::free(handle);
  --living[kind];
  return 0;
}

int copy(void* to, const void* from, size_t count) {
  if (current == 0) return 201;
  std::memcpy(to, from, count);
  return 0;
}

}  // namespace

extern "C" {

int rvos_living(int kind) { return living[kind]; }

int cuGetProcAddress_v2(const char* symbol, void** found, int, unsigned long long, void* status) {
  Dl_info self;
  dladdr(reinterpret_cast<void*>(&cuGetProcAddress_v2), &self);
  *found = dlsym(dlopen(self.dli_fname, RTLD_NOW | RTLD_NOLOAD), symbol);
  if (status != nullptr) *static_cast<int*>(status) = *found == nullptr;
  return *found == nullptr ? 500 : 0;
}

int cuInit(unsigned) { return 0; }
int cuGetErrorString(int error, const char** text) {
  *text = error == 2 ? "out of memory" : error == 101 ? "invalid device ordinal" : "another error";
  return 0;
}
int cuDeviceGet(int* device, int ordinal) {
  *device = ordinal;
  return ordinal == 0 ? 0 : 101;
}
int cuDeviceGetName(char* name, int length, int) {
  std::strncpy(name, "host memory", length);
  return 0;
}
int cuDeviceGetAttribute(int* value, int attribute, int) {
  *value = attribute == 75 ? 8 : attribute == 76 ? 6 : -1;
  return 0;
}
int cuDevicePrimaryCtxRetain(void** context, int) {
  ++living[kContext];
  *context = &living;
  return 0;
}
int cuDevicePrimaryCtxRelease(int) {
  --living[kContext];
  return 0;
}
int cuCtxPushCurrent(void* context) {
  ++current;
  return context == &living ? 0 : 201;
}
int cuCtxPopCurrent(void** context) {
  *context = &living;
  return current-- > 0 ? 0 : 201;
}
int cuStreamCreate(void** stream, unsigned flags) { return flags == 1 ? make(stream, kStream) : 1; }
int cuStreamDestroy(void* stream) { return drop(stream, kStream); }
int cuStreamSynchronize(void*) { return current == 0; }
int cuStreamWaitEvent(void* stream, void* event, unsigned) {
  return stream == nullptr || event == nullptr;
}
int cuEventCreate(void** event, unsigned flags) { return flags == 2 ? make(event, kEvent) : 1; }
int cuEventDestroy(void* event) { return drop(event, kEvent); }
int cuEventRecord(void* event, void* stream) { return stream == nullptr || event == nullptr; }
int cuEventSynchronize(void* event) { return event == nullptr; }
int cuEventQuery(void*) { return 600; }
int cuModuleLoadData(void** module, const void* image) {
  return std::strcmp(static_cast<const char*>(image), "the PTX") == 0 ? make(module, kModule) : 218;
}
int cuModuleGetFunction(void** function, void* module, const char* name) {
  *function = module;
  return std::strcmp(name, "rvos_ms_deform_attn") == 0 ? 0 : 500;
}
int cuModuleUnload(void* module) { return drop(module, kModule); }
int cuLaunchKernel(void*, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                   unsigned block_y, unsigned block_z, unsigned shared, void* stream,
                   void** parameters, void** extra) {
  if (current == 0 || extra != nullptr || shared != 0) return 1;
  float* output = *static_cast<float**>(parameters[7]);
  for (int i = 0; i < 5; ++i) *output++ = **static_cast<float**>(parameters[i]);
  for (int i = 5; i < 7; ++i) *output++ = static_cast<float>(*static_cast<int*>(parameters[i]));
  for (unsigned size : {grid_x, grid_y, grid_z, block_x, block_y, block_z}) {
    *output++ = static_cast<float>(size);
  }
  *output = static_cast<float>(reinterpret_cast<size_t>(stream));
  return 0;
}
int cuMemAlloc(unsigned long long* address, size_t size) {
  if (size > size_t{1} << 30) return 2;
  void* memory;
  const int error = make(&memory, kDevice);
  *address = reinterpret_cast<unsigned long long>(std::realloc(memory, size));
  return error;
}
int cuMemFree(unsigned long long address) {
  return drop(reinterpret_cast<void*>(address), kDevice);
}
int cuMemGetInfo(size_t* free, size_t* total) {
  *free = size_t{5} << 20;
  *total = size_t{7} << 20;
  return 0;
}
int cuMemHostAlloc(void** memory, size_t size, unsigned) {
  const int error = make(memory, kPinned);
  *memory = std::realloc(*memory, size);
  return error;
}
int cuMemFreeHost(void* memory) { return drop(memory, kPinned); }
int cuMemcpyHtoDAsync(unsigned long long to, const void* from, size_t count, void* stream) {
  return stream == nullptr ? 1 : copy(reinterpret_cast<void*>(to), from, count);
}
int cuMemcpyDtoHAsync(void* to, unsigned long long from, size_t count, void* stream) {
  return stream == nullptr ? 1 : copy(to, reinterpret_cast<void*>(from), count);
}
int cuMemcpyDtoDAsync(unsigned long long to, unsigned long long from, size_t count, void* stream) {
  if (stream == nullptr) return 1;
  return copy(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), count);
}

}  // extern "C"
