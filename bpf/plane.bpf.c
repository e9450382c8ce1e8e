// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * The kernel's part of the fabric: TRILL and LISP forwarding on tc, TRILL on XDP besides.
 *
 *   guest -> access_in -> lisp_in           tc ingress of a tap or veth
 *   guest <- access_out                     tc egress of it
 *   neighbour -> [xdp_trunk] -> trunk_in    XDP and tc ingress of a trunk
 *   trunk_in, lisp_under -> gro_in          tc ingress of a veth end with GRO
 *   other RLOCs -> lisp_under               tc ingress of the underlay interface
 *   tunnel -> [tunnel_in] -> VXLAN port     tc ingress of the tunnel under a trunk
 *   rack -> [rack_in] -> VXLAN port         tc ingress of the network under a rack's trunks
 *   provider's line -> line_in              tc ingress of it: echoes beside a tunnel
 *
 * One object, so that all programs share one set of maps. Programs use the user-space API of the
 * kernel only (no kernel structure is read), so nothing needs relocation from kernel to kernel.
 */
#include "access.h"
#include "fast.h"
#include "gro.h"
#include "line.h"
#include "lisp.h"
#include "trunk.h"
#include "tunnel_in.h"

char _license[] SEC("license") = "GPL";
