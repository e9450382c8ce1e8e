-- Reads what tshark 4.0 cannot: fine-grained labels (RFC 7172), RBridge Channel with BFD
-- (RFC 7178, 7175), MTU probes and acknowledgements (RFC 7176 section 3), interest in labels
-- (RFC 7176 section 2.3.8), and LISP's Map-Notify-Ack (RFC 9301 section 5.7).
--
-- Written from the RFCs and apart from the product's own parsers, so that it may contradict
-- them. Use: tshark -X lua_script:nuage_trill.lua -r capture.pcap -V

local ETHERTYPE_FGL, ETHERTYPE_CHANNEL, ETHERTYPE_L2_ISIS = 0x893B, 0x8946, 0x22F4
local ethertypes = DissectorTable.get("ethertype")

-- Fine-grained label: priority and upper half, Ethertype again, priority and lower half.
local fgl = Proto("nuage_fgl", "Fine-Grained Label")
fgl.fields.label = ProtoField.uint24("nuage_fgl.label", "Label", base.HEX)
fgl.fields.priority = ProtoField.uint8("nuage_fgl.priority", "Priority", base.DEC)
fgl.experts.half = ProtoExpert.new("nuage_fgl.half", "Half a label", expert.group.MALFORMED,
  expert.severity.ERROR)

function fgl.dissector(buffer, pinfo, tree)
  local node = tree:add(fgl, buffer(0, math.min(8, buffer:len())))
  if buffer:len() < 8 or buffer(2, 2):uint() ~= ETHERTYPE_FGL then
    node:add_proto_expert_info(fgl.experts.half)
    return
  end
  local high, low = buffer(0, 2):uint(), buffer(4, 2):uint()
  local label = bit32.lshift(bit32.band(high, 0xFFF), 12) + bit32.band(low, 0xFFF)
  node:add(fgl.fields.label, buffer(0, 6), label)
  node:add(fgl.fields.priority, buffer(0, 1), bit32.rshift(high, 13))
  ethertypes:try(buffer(6, 2):uint(), buffer(8):tvb(), pinfo, tree)
end

ethertypes:add(ETHERTYPE_FGL, fgl)

-- RBridge Channel: version and protocol, flags and error, then the protocol's own bytes.
local channel = Proto("nuage_channel", "RBridge Channel")
channel.fields.version = ProtoField.uint8("nuage_channel.version", "Version", base.DEC)
channel.fields.protocol = ProtoField.uint16("nuage_channel.protocol", "Protocol", base.HEX,
  { [2] = "BFD Control", [3] = "BFD Echo", [0xFF8] = "Trace (private)" })
channel.fields.silent = ProtoField.bool("nuage_channel.silent", "Silent")
channel.fields.multi_hop = ProtoField.bool("nuage_channel.multi_hop", "Multi-hop")
channel.fields.error = ProtoField.uint8("nuage_channel.error", "Error", base.DEC)
channel.fields.echo = ProtoField.bytes("nuage_channel.echo", "Echo")
channel.fields.trace_kind = ProtoField.uint8("nuage_channel.trace.kind", "Trace", base.DEC,
  { [1] = "probe", [2] = "answer" })
channel.fields.trace_hop = ProtoField.uint16("nuage_channel.trace.hop", "Hop", base.DEC)
channel.fields.trace_id = ProtoField.uint32("nuage_channel.trace.id", "Trace ID", base.HEX)
channel.fields.trace_nickname = ProtoField.uint16("nuage_channel.trace.nickname", "Nickname",
  base.HEX)
channel.fields.trace_port = ProtoField.uint16("nuage_channel.trace.port", "Port", base.DEC)

function channel.dissector(buffer, pinfo, tree)
  pinfo.cols.protocol = "RBCHANNEL"
  local first, second = buffer(0, 2):uint(), buffer(2, 2):uint()
  local node = tree:add(channel, buffer(0, 4))
  local protocol = bit32.band(first, 0xFFF)
  node:add(channel.fields.version, buffer(0, 1), bit32.rshift(first, 12))
  node:add(channel.fields.protocol, buffer(0, 2), protocol)
  node:add(channel.fields.silent, buffer(2, 1), bit32.band(second, 0x8000) ~= 0)
  node:add(channel.fields.multi_hop, buffer(2, 1), bit32.band(second, 0x4000) ~= 0)
  node:add(channel.fields.error, buffer(3, 1), bit32.band(second, 0xF))
  if protocol == 2 then
    DissectorTable.get("udp.port"):get_dissector(3784):call(buffer(4):tvb(), pinfo, tree)
  elseif protocol == 3 then
    node:add(channel.fields.echo, buffer(4))
  elseif protocol == 0xFF8 then
    node:add(channel.fields.trace_kind, buffer(4, 1))
    node:add(channel.fields.trace_hop, buffer(6, 2))
    node:add(channel.fields.trace_id, buffer(8, 4))
    node:add(channel.fields.trace_nickname, buffer(12, 2))
    node:add(channel.fields.trace_port, buffer(14, 2))
  end
end

ethertypes:add(ETHERTYPE_CHANNEL, channel)

-- What the IS-IS and LISP dissectors leave out is read a second time, behind them.
local more = Proto("nuage_more", "More of IS-IS and LISP")
local f = more.fields
f.mtu_type = ProtoField.uint8("nuage_more.mtu.type", "MTU PDU", base.DEC,
  { [23] = "MTU-probe", [28] = "MTU-ack" })
f.mtu_length = ProtoField.uint16("nuage_more.mtu.length", "PDU length", base.DEC)
f.probe_id = ProtoField.bytes("nuage_more.mtu.probe_id", "Probe ID")
f.probe_source = ProtoField.bytes("nuage_more.mtu.probe_source", "Probe source")
f.ack_source = ProtoField.bytes("nuage_more.mtu.ack_source", "Acknowledgement source")
f.tlv = ProtoField.uint8("nuage_more.mtu.tlv", "TLV", base.DEC)
f.interest_nickname = ProtoField.uint16("nuage_more.labels.nickname", "Nickname", base.HEX)
f.interest_first = ProtoField.uint24("nuage_more.labels.first", "First label", base.HEX)
f.interest_last = ProtoField.uint24("nuage_more.labels.last", "Last label", base.HEX)
f.ack_nonce = ProtoField.uint64("nuage_more.notify_ack.nonce", "Nonce", base.HEX)
f.ack_records = ProtoField.uint8("nuage_more.notify_ack.records", "Records", base.DEC)
f.ack_algorithm = ProtoField.uint8("nuage_more.notify_ack.algorithm", "Algorithm", base.DEC)
more.experts.length = ProtoExpert.new("nuage_more.length", "Lengths contradict",
  expert.group.MALFORMED, expert.severity.ERROR)

-- Calls visit(number, value) for each TLV between two offsets; tells whether they fit.
local function each_tlv(buffer, from, to, visit)
  while from + 2 <= to do
    local number, length = buffer(from, 1):uint(), buffer(from + 1, 1):uint()
    if from + 2 + length > to then return false end
    visit(number, from + 2, length)
    from = from + 2 + length
  end
  return from == to
end

local function mtu_pdu(buffer, start, kind, tree)
  local length = buffer(start + 8, 2):uint()
  local node = tree:add(more, buffer(start, length), "MTU PDU")
  node:add(f.mtu_type, buffer(start + 4, 1), kind)
  node:add(f.mtu_length, buffer(start + 8, 2))
  node:add(f.probe_id, buffer(start + 10, 6))
  node:add(f.probe_source, buffer(start + 16, 6))
  node:add(f.ack_source, buffer(start + 22, 6))
  local whole = buffer(start + 1, 1):uint() == 28 and
    each_tlv(buffer, start + 28, start + length, function(number, at)
      node:add(f.tlv, buffer(at - 2, 1), number)
    end)
  if not whole then node:add_proto_expert_info(more.experts.length) end
end

local function interest(buffer, at, length, tree)
  local node = tree:add(more, buffer(at, length), "Interested Labels")
  if length < 13 or (length - 13) % 6 ~= 0 then
    node:add_proto_expert_info(more.experts.length)
    return
  end
  node:add(f.interest_nickname, buffer(at, 2))
  node:add(f.interest_first, buffer(at + 3, 3))
  node:add(f.interest_last, buffer(at + 6, 3))
end

local function lsp(buffer, start, tree)
  local length = buffer(start + 8, 2):uint()
  each_tlv(buffer, start + 27, start + length, function(number, at, size)
    if number ~= 242 then return end
    local whole = each_tlv(buffer, at + 5, at + size, function(sub, sub_at, sub_size)
      if sub == 15 then interest(buffer, sub_at, sub_size, tree) end
    end)
    if not whole then tree:add_proto_expert_info(more.experts.length) end
  end)
end

local function notify_ack(buffer, start, tree)
  local node = tree:add(more, buffer(start), "Map-Notify-Ack")
  node:add(f.ack_records, buffer(start + 3, 1))
  node:add(f.ack_nonce, buffer(start + 4, 8))
  node:add(f.ack_algorithm, buffer(start + 13, 1))
  if start + 16 + buffer(start + 14, 2):uint() > buffer:len() then
    node:add_proto_expert_info(more.experts.length)
  end
end

local udp_port = Field.new("udp.dstport")

function more.dissector(buffer, pinfo, tree)
  if buffer:len() < 42 then return end
  local ethertype = buffer(12, 2):uint()
  if ethertype == ETHERTYPE_L2_ISIS then
    local kind = bit32.band(buffer(18, 1):uint(), 0x1F)
    if kind == 23 or kind == 28 then
      mtu_pdu(buffer, 14, kind, tree)
      pinfo.cols.info = kind == 23 and "MTU-probe" or "MTU-ack"
    elseif kind == 18 then
      lsp(buffer, 14, tree)
    end
  elseif ethertype == 0x0800 and udp_port() and udp_port().value == 4342 then
    local start = 14 + bit32.band(buffer(14, 1):uint(), 0xF) * 4 + 8
    if bit32.rshift(buffer(start, 1):uint(), 4) == 5 then
      notify_ack(buffer, start, tree)
      pinfo.cols.info = "Map-Notify-Ack"
    end
  end
end

register_postdissector(more)
