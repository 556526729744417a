/* The ABI, once for each room: _vhostnet.h has no guard of its own, since ffi.cdef() reads it, too. */

#ifndef VN_CORE_H
#define VN_CORE_H

#include <stdint.h>

#include "_vhostnet.h"

#endif
